"""The scratch file under several threads."""

import random
import threading

import numpy as np
import pytest

from teramind.engine.scratch import Scratch


@pytest.mark.parametrize("workers", [1, 4])
def test_blocks_come_back_as_they_were_whatever_is_prefetched(tmp_path, workers):
    """Threads store, load and release their own blocks while another prefetches any slot at any moment."""
    scratch = Scratch(tmp_path, 4000, workers)
    failures, over = [], threading.Event()

    def own(seed):
        generator = random.Random(seed)
        held = {}
        try:
            for number in range(300):
                block = np.full(generator.choice([(3, 5), (10, 100), (1, 1)]), seed * 1000 + number, np.float32)
                held[scratch.store(block)] = block
                if len(held) > 3:
                    slot = generator.choice(list(held))
                    expected = held.pop(slot)
                    for _ in range(generator.choice([0, 1, 2])):
                        np.testing.assert_array_equal(scratch.load(slot), expected)
                    scratch.release(slot)
        except BaseException as error:
            failures.append(error)

    def disturb():
        generator = random.Random(0)
        while not over.is_set():
            scratch.prefetch(generator.randrange(5 * workers))

    threads = [threading.Thread(target=own, args=(seed,)) for seed in range(workers)]
    disturber = threading.Thread(target=disturb)
    for thread in (*threads, disturber):
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    disturber.join()
    scratch.close()
    assert not failures
    assert not [*tmp_path.iterdir()]


def test_blocks_of_different_sizes_share_slots(tmp_path):
    scratch = Scratch(tmp_path, 100)
    assert scratch.slot_bytes == 4096  # whole pages
    first = scratch.store(np.arange(25, dtype=np.float32))
    scratch.release(first)
    assert scratch.store(np.arange(7, dtype=np.float16)) == first
    np.testing.assert_array_equal(scratch.load(first), np.arange(7, dtype=np.float16))
    assert scratch.used_bytes == 4096
    scratch.close()
