"""Ctrl-C that ends a training between two steps."""

import signal
import threading
from typing import Any

import tf_keras as keras


class Interruption(keras.callbacks.Callback):
    """Raises KeyboardInterrupt after Ctrl-C, but between two steps.

    Raised wherever the program happens to be, it can fall into a destructor, which swallows it. Put it last.
    """

    def __init__(self) -> None:
        super().__init__()
        self._asked = False

    def listen(self) -> Any:
        """Takes over Ctrl-C, in the main thread; returns the handler to restore, or None."""
        if threading.current_thread() is not threading.main_thread():
            return None
        previous = signal.getsignal(signal.SIGINT)
        if previous in (signal.SIG_IGN, None):
            # Of a job in the background, whose shell keeps Ctrl-C from it; or not of Python.
            return None

        def ask(number: int, frame: Any) -> None:
            self._asked = True
            # Whoever cannot wait for the end of the step presses it again.
            signal.signal(signal.SIGINT, previous)

        signal.signal(signal.SIGINT, ask)
        return previous

    def _raise_if_asked(self, *args: Any, **kwargs: Any) -> None:
        if self._asked:
            raise KeyboardInterrupt

    # An epoch that has ended is kept first, by the callbacks before this one.
    on_train_batch_end = on_test_batch_end = on_epoch_begin = on_train_end = _raise_if_asked
