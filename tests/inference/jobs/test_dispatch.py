"""Every item gets one outcome, whatever its workers do."""

import time
from functools import partial
from queue import SimpleQueue
from threading import Event

import pytest

from mmchat.errors import UserError
from mmchat.images import load_image
from mmchat.inference.captioning import CaptionTask
from mmchat.inference.jobs import dispatch as module
from mmchat.inference.jobs.dispatch import dispatch
from mmchat.inference.jobs.items import Item, Outcome
from mmchat.inference.jobs.ranks import rank_workers
from mmchat.inference.jobs.workers import Answered, Died, Ready, ThreadWorker
from tests.inference.jobs.fakes import FakeGenerator, open_deadly, open_fake, open_refused


class ScriptedWorker:
    """Answers when the test says so. `deaths`: how many items it takes before each death."""

    def __init__(self, events, threads=1, window=3, deaths=()):
        self.threads, self.window, self.events = threads, window, events
        self.deaths, self.held, self.seen, self.cancelled, self.starts = list(deaths), [], [], [], 0

    def start(self):
        self.starts += 1
        self.held = []
        self.events.put(Ready(self))

    def submit(self, number, item):
        self.seen.append(number)
        self.held.append(number)
        if self.deaths and len(self.held) == self.deaths[0]:
            self.deaths.pop(0)
            self.events.put(Died(self, "was killed by signal 9"))

    def cancel(self, number):
        self.cancelled.append(number)
        self.held.remove(number)

    def close(self):
        pass

    def answer(self):
        number = self.held.pop(0)
        self.events.put(Answered(self, number, Outcome({"caption": str(number)})))


def items(count):
    return (Item({"path": str(number)}, open=lambda: None) for number in range(count))


def run(count, script, **worker):
    """Dispatch with two scripted workers. `script(first, second)` is called whenever nothing else happens and all items
    were read."""
    workers, read = [], Event()

    def watched():
        yield from items(count)
        read.set()

    class Events(SimpleQueue):
        def get(self):
            while self.empty():
                time.sleep(0.001)
                if read.is_set():
                    script(*workers)
            return super().get()

    def make(events):
        workers.extend(ScriptedWorker(events, **worker) for _ in range(2))
        return workers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SimpleQueue", Events)
        outcomes = [(item.key["path"], outcome.answer) for item, outcome in dispatch(watched(), make)]
    return outcomes, workers


def answer_all(*workers):
    for worker in workers:
        if worker.held:
            worker.answer()


def test_every_item_is_answered_once():
    outcomes, (first, second) = run(20, answer_all)
    assert sorted(outcomes, key=lambda one: int(one[0])) == [(str(n), {"caption": str(n)}) for n in range(20)]
    assert len(first.seen) > 5 and len(second.seen) > 5


def test_no_worker_holds_more_than_its_window():
    def script(*workers):
        assert all(len(worker.held) <= worker.window for worker in workers)
        answer_all(*workers)

    assert len(run(30, script)[0]) == 30


def test_what_waits_at_a_slow_worker_moves_to_an_idle_one():
    def script(first, second):
        if second.held:
            second.answer()
        elif first.held and not second.held:
            first.answer()  # the slow one: only when the other has nothing left to do

    outcomes, (first, second) = run(12, script)
    assert len(outcomes) == 12
    assert first.cancelled and set(first.cancelled) <= set(second.seen)
    assert len(second.seen) > len(first.seen) - len(first.cancelled)


def test_an_item_that_was_answered_while_it_moved_counts_once():
    class Stubborn(ScriptedWorker):
        def cancel(self, number):
            self.cancelled.append(number)  # and answers it all the same

    def script(first, second):
        answer_all(second) if second.held else answer_all(first)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptedWorker, "cancel", Stubborn.cancel)
        outcomes, (first, _) = run(12, script)
    assert first.cancelled
    assert sorted(int(name) for name, _ in outcomes) == list(range(12))


def test_the_items_of_a_dead_worker_go_to_others(capsys):
    outcomes, (first, second) = run(20, answer_all, deaths=(2,))
    assert sorted(int(name) for name, _ in outcomes) == list(range(20))
    assert not any("error" in answer for _, answer in outcomes)
    assert first.starts == second.starts == 2
    assert capsys.readouterr().err.count("was killed by signal 9 and is started again; it held") == 2


def test_workers_that_always_die_end_the_job():
    with pytest.raises(UserError, match=r"was killed by signal 9, the 6th worker to end .* fewer --ranks"):
        run(60, lambda *workers: None, deaths=(3, *(1,) * 9))


def test_an_error_of_the_items_is_raised():
    def broken():
        yield from items(2)
        raise UserError("the table is damaged")

    with pytest.raises(UserError, match="the table is damaged"):
        list(dispatch(broken(), lambda events: [ThreadWorker(None, lambda *_: Outcome({}), 1, events)]))


def test_items_are_read_a_few_ahead_only(monkeypatch):
    monkeypatch.setattr(module, "AHEAD", 4)
    read = []

    def watched():
        for item in items(100):
            read.append(item)
            yield item

    answers = dispatch(watched(), lambda events: [ThreadWorker(None, lambda *_: Outcome({}), 2, events)])
    next(answers)
    time.sleep(0.05)
    assert len(read) <= 4 + 2 + 2 * 6  # read ahead, one in hand, and the window twice: held, and answered but not taken
    answers.close()


def test_a_defect_is_raised_and_a_users_mistake_is_an_outcome():
    def task(generator, item):
        raise UserError("no image") if item.key["path"] == "1" else KeyError("a bug")

    outcomes = dispatch([*items(2)][1:], lambda events: [ThreadWorker(None, task, 1, events)])
    assert [outcome.answer for _, outcome in outcomes] == [{"error": "no image"}]
    with pytest.raises(KeyError, match="a bug"):
        list(dispatch(items(1), lambda events: [ThreadWorker(None, task, 1, events)]))


# Processes


@pytest.fixture
def images(tmp_path, make_image):
    """Items of eight images; the fourth has a width of 13."""
    found = []
    for number in range(8):
        make_image(number, width=10 + number).save(tmp_path / f"{number}.png")
        found.append(Item({"path": str(number)}, partial(load_image, tmp_path / f"{number}.png"), prompt="Width"))
    return found


def by_ranks(images, open_generator, slots=2, ranks=2):
    workers = partial(rank_workers, open_generator, CaptionTask(9), slots, ranks)
    return {item.key["path"]: outcome.answer for item, outcome in dispatch(images, workers)}


def test_ranks_answer_as_one_process_does(images):
    alone = dispatch(images, lambda events: [ThreadWorker(FakeGenerator(), CaptionTask(9), 2, events)])
    expected = {item.key["path"]: outcome.answer for item, outcome in alone}
    assert by_ranks(images, partial(open_fake, 0.0)) == expected
    assert expected["3"] == {"caption": "Width 13"}


def test_an_image_that_ends_its_worker_is_an_error_and_the_others_are_answered(images, tmp_path, capsys):
    (pids := tmp_path / "pids").mkdir()
    answers = by_ranks(images, partial(open_deadly, pids), slots=1)
    assert answers.pop("3") == {"error": "3 workers ended while they worked on it; the last ended with status 7"}
    assert len(answers) == 7 and all("caption" in answer for answer in answers.values())
    assert len(list(pids.iterdir())) >= 3
    assert capsys.readouterr().err.count("ended with status 7 and is started again; it held") == 3


def test_a_model_that_cannot_be_opened_is_one_mistake(images):
    with pytest.raises(UserError, match=r"^there is no such model$"):
        by_ranks(images, open_refused)
