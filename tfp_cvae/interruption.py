"""Ctrl-C that ends a training between two steps."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import tf_keras as keras


class Interruption(keras.callbacks.Callback):
    """Raises KeyboardInterrupt after Ctrl-C, but between two steps, or, of several in one program, after the last.

    Raised wherever the program happens to be, it can fall into a destructor, which swallows it. Put it last.
    """

    def __init__(self) -> None:
        super().__init__()
        self._asked = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Takes over Ctrl-C meanwhile, in the main thread; in others it changes nothing."""
        is_main = threading.current_thread() is threading.main_thread()
        previous = signal.getsignal(signal.SIGINT) if is_main else None
        if previous in (signal.SIG_IGN, None):
            # Of a job in the background, whose shell keeps Ctrl-C from it; or not of Python.
            yield
            return

        def ask(number: int, frame: Any) -> None:
            self._asked = True
            # Whoever cannot wait for the end of the step presses it again.
            signal.signal(signal.SIGINT, previous)

        signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def _raise_if_asked(self, *args: Any, **kwargs: Any) -> None:
        if self._asked:
            raise KeyboardInterrupt

    # An epoch that has ended is kept first, by the callbacks before this one.
    on_train_batch_end = on_test_batch_end = on_epoch_begin = on_train_end = _raise_if_asked
