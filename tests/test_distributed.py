"""Two processes do together what one does alone, and fail with one voice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch.distributed.launcher import api

import mgdet.engine.loop as loop
from mgdet.cli import main
from mgdet.config import Config
from mgdet.data.batch import collate
from mgdet.data.coco import read_coco
from mgdet.data.dataset import DetectionDataset
from mgdet.data.transforms import View
from mgdet.distributed import World, launch
from mgdet.engine.checkpoint import check_all_see_it
from mgdet.engine.step import Step
from mgdet.errors import UserError
from mgdet.interop.weights import read_checkpoint, save_checkpoint
from mgdet.models import load_detector
from tiny import ALONE, CLASSES, assert_same_run, assert_same_tensors, records, start, state_of, wait_for

pytestmark = pytest.mark.slow


class TestGradients:
    """DistributedDataParallel around the student, with the teacher outside of it."""

    @staticmethod
    def config(path):
        config = Config.from_dict(json.loads(path.read_text()))
        config.student.norm_eval, config.train.stop_after, config.train.log_every = True, 1, 1
        return config

    @staticmethod
    def one_step(config, folder, world, pictures):
        """Gradients of the first step over a batch of these pictures, without drawing masks."""
        found = {}
        clip = torch.nn.utils.clip_grads_with_norm_

        def note_gradients(parameters, *rest):
            found.update({i: p.grad.clone() for i, p in enumerate(parameters)})
            clip(parameters, *rest)

        def batches(dataset, sampler, **_):
            yield collate([dataset[View(i, 96, 64, False)] for i in pictures])

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "rand", lambda size, **_: torch.full(size, 0.2))
            patch.setattr(torch.nn.utils, "clip_grads_with_norm_", note_gradients)
            patch.setattr(loop, "train_loader", batches)
            assert loop.train(config, folder, resume=False, world=world) == 0
        return found

    def test_two_processes_give_the_mean_of_two_single_ones(self, tiny, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps(tiny.config().to_dict()))
        torch.multiprocessing.spawn(_one_of_two, (tmp_path,), nprocs=2)
        together = [torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1)]
        assert_same_tensors(*together)
        config = self.config(tmp_path / "config.json")
        alone = [self.one_step(config, tmp_path / f"alone{r}", ALONE, PICTURES[r]) for r in (0, 1)]
        assert together[0].keys() == alone[0].keys() and len(alone[0]) > 50
        for i, gradient in together[0].items():
            mean = (alone[0][i] + alone[1][i]) / 2
            torch.testing.assert_close(gradient, mean, rtol=1e-4, atol=1e-5 * float(mean.abs().max()))
        differing = [i for i in alone[0] if not torch.allclose(alone[0][i], alone[1][i], rtol=1e-2, atol=0)]
        assert len(differing) > len(alone[0]) / 2
        # What is logged is the mean, too.
        losses = [records(tmp_path / name)[0]["loss"] for name in ("two", "alone0", "alone1")]
        assert losses[0] == pytest.approx((losses[1] + losses[2]) / 2, rel=1e-6)


PICTURES = ((0, 1), (4, 5))


def _join(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    return World(rank=rank, size=2, device=torch.device("cpu"))


def _one_of_two(rank, folder):
    world = _join(rank, folder)
    config = TestGradients.config(folder / "config.json")
    found = TestGradients.one_step(config, folder / "two", world, PICTURES[rank])
    torch.save(found, folder / f"{rank}.pth")
    torch.distributed.destroy_process_group()


def test_a_signal_to_one_process_stops_the_evaluation_of_both(tiny, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny.config().to_dict()))
    torch.multiprocessing.spawn(_signalled_in_evaluation, (tmp_path,), nprocs=2)
    assert "stopped by another process after step 6; all is saved" in (tmp_path / "run" / "log.txt").read_text()
    state = state_of(tmp_path / "run")
    assert (state.step, state.evaluated) == (6, False)
    # What they evaluated with were the statistics of the first.
    statistics = [torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1)]
    assert_same_tensors(*statistics)
    kept = {name: value for name, value in statistics[0].items() if f"student.{name}" in state.model}
    assert_same_tensors(kept, {name: state.model[f"student.{name}"] for name in kept})


def _signalled_in_evaluation(rank, folder):
    world = _join(rank, folder)

    def activity(log, text, done, total):
        if rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def watched(detector, *arguments, **options):
        torch.save(dict(detector.named_buffers()), folder / f"{rank}.pth")
        return run_detector(detector, *arguments, **options)

    config = Config.from_dict(json.loads((folder / "config.json").read_text()))
    config.train.batch = 1
    run_detector = loop.run_detector
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.RunLog, "activity", activity)
        patch.setattr(loop, "run_detector", watched)
        assert loop.train(config, folder / "run", resume=False, world=world) == (143 if rank == 1 else 0)
    torch.distributed.destroy_process_group()


def test_buffers_do_not_travel_with_a_step(tiny, tmp_path):
    """Constants would be sent again each time; what norms gather is shared where it is read or saved."""
    (tmp_path / "config.json").write_text(json.dumps(tiny.config().to_dict()))
    torch.multiprocessing.spawn(_with_a_buffer_of_its_own, (tmp_path,), nprocs=2)
    assert [torch.load(tmp_path / f"{rank}.pth").item() for rank in (0, 1)] == [0, 1]


def _with_a_buffer_of_its_own(rank, folder):
    world = _join(rank, folder)
    config = Config.from_dict(json.loads((folder / "config.json").read_text()))
    config.train.stop_after = 2
    take = Step.take

    def marked(step, *arguments, **options):
        if not hasattr(step.student, "mark"):
            step.student.register_buffer("mark", torch.tensor(rank), persistent=False)
        outcome = take(step, *arguments, **options)
        torch.save(step.student.mark, folder / f"{rank}.pth")
        return outcome

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "take", marked)
        assert loop.train(config, folder / "run", resume=False, world=world) == 0
    torch.distributed.destroy_process_group()


def test_two_processes_find_the_same_weights_for_a_share(tiny, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny.config().to_dict()))
    torch.multiprocessing.spawn(_with_a_share, (tmp_path,), nprocs=2)
    states = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert states[0] == states[1] == state_of(tmp_path / "run").balance
    assert states[0]["steps"] == 3 and states[0]["weights"]["loss_mgd_fpn_0"] > 0


def _with_a_share(rank, folder):
    world = _join(rank, folder)
    config = Config.from_dict(json.loads((folder / "config.json").read_text()))
    config.mgd.weight, config.mgd.share = 0.0, 0.3
    config.train.batch, config.train.stop_after = 1, 3
    seen = []

    class Watched(loop.Run):
        def to_the_end(self, loader):
            super().to_the_end(loader)
            seen.append(self.student.balance.state())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Run", Watched)
        assert loop.train(config, folder / "run", resume=False, world=world) == 0
    (folder / f"{rank}.json").write_text(json.dumps(seen[0]))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def detector(tiny, tmp_path_factory):
    """A checkpoint that finds something in the even pictures of `val` and nothing in the grey ones."""
    config = tiny.config(distil=False)
    model, _ = load_detector(config.student, read_checkpoint(tiny.teacher), CLASSES)
    data = DetectionDataset(read_coco(tiny.root / "annotations" / "val.json", tiny.root / "val"), training=False)
    with torch.no_grad():
        model.bbox_head.retina_cls.weight *= 20
        best = []
        for i in range(len(data)):
            batch = collate([data[View(i, 96, 64, False)]])
            logits, _ = model.bbox_head(model.pyramid(batch.images()).maps)
            best.append(max(float(level.max()) for level in logits))
        threshold = (min(best[0::2]) + max(best[1::2])) / 2
        assert max(best[1::2]) < threshold < min(best[0::2])
        model.bbox_head.retina_cls.bias += torch.logit(torch.tensor(0.05)) - threshold
    path = tmp_path_factory.mktemp("detector") / "detector.pth"
    save_checkpoint(path, model.state_dict(), classes=CLASSES, config=config.to_dict())
    return path


def spoken(arguments):
    """Exit code, stdout and stderr of a command of its own process."""
    process = start(arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_two_processes_test_as_one_does(tiny, detector, tmp_path, capsys):
    """Five pictures, and the second process finds nothing in its two."""
    arguments = ["test", "tiny:alone", str(detector), "--data.root", str(tiny.root), "--data.workers", "0"]
    assert main([*arguments, "--out", str(tmp_path / "one.json")]) == 0
    alone = capsys.readouterr().out
    results = json.loads((tmp_path / "one.json").read_text())
    assert {result["image_id"] for result in results} == {100, 102, 104}
    code, out, err = spoken([*arguments, "--devices", "2", "--out", str(tmp_path / "two.json")])
    assert (code, err) == (0, "")
    assert out.replace("two.json", "one.json") == alone
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "one.json").read_bytes()


def test_a_run_of_two_processes_stops_and_resumes(tiny, tmp_path):
    """SIGTERM to the process that the user started; the evaluation is everybody's, with one set of statistics."""
    folder, whole = tmp_path / "run", tmp_path / "whole"
    common = [*tiny.arguments("train"), "--devices", "2", "--train.batch", "1", "--data.workers", "1"]
    common += ["--schedule.epochs", "20", "--schedule.drops", "10"]
    process = start([*common, "--run-dir", str(folder)])
    wait_for(lambda: (folder / "metrics.jsonl").exists() and len(records(folder)) > 4, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (143, "")
    assert "all is saved, --resume goes on from here" in out.splitlines()[-1]
    assert out.count("all is saved") == 1
    step = state_of(folder).step
    end = str(step // 6 * 6 + 7)
    for run_dir, more in ((folder, ["--resume"]), (whole, [])):
        assert spoken([*common, "--run-dir", str(run_dir), "--train.stop_after", end, *more])[0] == 0
    assert_same_run(folder, whole)


def test_bad_input_is_said_once(tiny, tmp_path):
    """By the first process, when all meet it."""
    missing = str(tmp_path / "missing.pth")
    arguments = [*tiny.arguments("train"), "--devices", "2", "--run-dir", str(tmp_path / "run")]
    code, out, err = spoken([*arguments, "--teacher.weights", missing])
    assert (code, out) == (2, "")
    assert err == (
        f"mgdet: the teacher's checkpoint '{missing}' is not here; put the file there, or name another one with "
        "--teacher.weights\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_processes_looks_at_the_run_and_both_stop(tiny, tmp_path):
    checkpoint = read_checkpoint(tiny.teacher)
    checkpoint.state_dict["neck.fpn_convs.4.conv.weight"].fill_(3e38)  # finite, what it gives is not
    save_checkpoint(tmp_path / "huge.pth", checkpoint.state_dict, classes=CLASSES, config=checkpoint.config)
    arguments = [*tiny.arguments("train"), "--devices", "2", "--run-dir", str(tmp_path / "run"), "--no-inherit"]
    code, out, err = spoken([*arguments, "--teacher.weights", str(tmp_path / "huge.pth")])
    assert code == 2, err
    assert out.count("taking one step, which is undone") == 1 and out.count("STOP") == 1
    assert err.startswith("mgdet: the run does not start: the first step is not finite: loss, loss_mgd_fpn_4 on ")
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_bad_input_of_one_process_is_said_by_it(tiny, detector, tmp_path):
    """A truncated picture in the second one's share."""
    root = tmp_path / "data"
    shutil.copytree(tiny.root, root)
    picture = root / "val" / "3.jpg"
    os.truncate(picture, 400)
    arguments = ["test", "tiny:alone", str(detector), "--data.root", str(root), "--data.workers", "1"]
    code, out, err = spoken([*arguments, "--devices", "2", "--out", str(tmp_path / "out.json")])
    assert (code, out, err) == (2, "", f"mgdet: image '{picture}' is truncated; copy it again\n")
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(("steps", "other"), [([5, 0], 1), ([0, 0, 7], 2)])
def test_a_run_that_not_all_machines_see_is_refused(steps, other, tmp_path):
    with pytest.raises(UserError, match=rf"process {other} at step {steps[other]}; the folder must be on a disk"):
        check_all_see_it(tmp_path, steps)
    check_all_see_it(tmp_path, [4, 4, 4])


def test_a_process_that_is_killed_is_named(tiny, tmp_path):
    folder = tmp_path / "run"
    arguments = [*tiny.arguments("train"), "--devices", "2", "--run-dir", str(folder), "--train.batch", "1"]
    process = start([*arguments, "--schedule.epochs", "500"])
    wait_for(lambda: (folder / "metrics.jsonl").exists() and len(records(folder)) > 2, process)
    last = max(children(process.pid))
    os.kill(last, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.endswith("of 2 was ended by SIGKILL, so all had to stop\n") and err.count("\n") == 1


def test_a_process_that_failed_keeps_its_code_where_its_exit_aborts(tmp_path):
    """As gloo may do at the end of a process whose peers are gone."""
    (tmp_path / "sitecustomize.py").write_text("import atexit, os\natexit.register(os.abort)\n")
    arguments = [sys.executable, "-m", "mgdet", "test", "no_such_recipe", "no.pth"]
    for marks, code in (({"TORCHELASTIC_RUN_ID": "1"}, 2), ({}, -signal.SIGABRT)):
        env = os.environ | {"PYTHONPATH": str(tmp_path)} | marks
        assert subprocess.run(arguments, check=False, env=env, capture_output=True, text=True).returncode == code


def test_a_run_of_many_processes_leaves_no_folder_behind(tiny, tmp_path, monkeypatch):
    (scratch := tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    assert spoken([*tiny.arguments("train"), "--devices", "2", "--teacher.weights", "no.pth"])[0] == 2
    assert list(scratch.iterdir()) == []


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def test_the_first_process_of_each_machine_goes_first(monkeypatch):
    """Two machines of two processes: what is downloaded is downloaded once on each."""
    barrier, lock, order = threading.Barrier(4), threading.Lock(), []
    monkeypatch.setattr(World, "barrier", lambda world: barrier.wait())

    def make(rank):
        time.sleep(0.1)
        with lock:
            order.append(rank)
        return rank

    def process(rank):
        world = World(rank=rank, size=4, device=torch.device("cpu"), local_rank=rank % 2)
        assert world.in_turn(lambda: make(rank)) == rank

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (set(order[:2]), set(order[2:])) == ({0, 2}, {1, 3})


@pytest.mark.parametrize(("given", "seconds"), [(None, 600), ("45", 45)])
def test_processes_that_are_asked_to_stop_have_time_to_save(monkeypatch, given, seconds):
    """Where torch lets one say so; what the user says counts."""
    configs = []
    monkeypatch.setattr(api, "elastic_launch", lambda config, *_: configs.append(config) or (lambda *arguments: {}))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", given or "")
    if given is None:
        monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT")
    assert launch(2, ["train"]) == 0
    if hasattr(configs[0], "shutdown_timeout"):
        assert configs[0].shutdown_timeout == seconds


def test_more_devices_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="--devices is 2, but this machine has 1 GPUs"):
        launch(2, ["train"])
