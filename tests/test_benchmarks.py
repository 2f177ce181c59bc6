"""The benchmarks: that they count right, on graphs made by hand, and that each script runs."""

import json
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import cost
import environments
import jobs
import measure
import methods
import report
import scaling
import throughput
import worker
import works

CPU = torch.device("cpu")


def leaf(*shape):
    return torch.randn(*shape, requires_grad=True)


class Hides(torch.autograd.Function):
    """Keeps its input where autograd doesn't see it."""

    @staticmethod
    def forward(ctx, x):
        ctx.hidden = x.detach() + 1
        return x.sum()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.hidden


def statistic_let_go_of():
    """The mean square's graph is no longer held: all that is saved is the statistic itself."""
    x = leaf(10, 10)

    def forward():
        h = x * 2
        return h * h.pow(2).mean(-1, keepdim=True).rsqrt().detach()

    return forward


def two_views_of_one():
    x = leaf(10, 10)

    def forward():
        h = x * 2
        return h[:, :5] * h[:, 5:]

    return forward


class TestSavedBytes:
    def test_result_of_an_operation(self):
        x = leaf(4, 8)
        assert measure.saved_bytes(lambda: x.exp()) == 4 * 8 * 4

    def test_storage_is_counted_whole_and_once(self):
        assert measure.saved_bytes(two_views_of_one()) == 10 * 10 * 4

    def test_one_row_keeps_all_rows(self):
        x = leaf(10, 10)
        assert measure.saved_bytes(lambda: (x * 2)[0].sin()) == 10 * 10 * 4

    def test_constants_do_not_count(self):
        x, weight = leaf(3, 5), torch.randn(5, 7)
        assert measure.saved_bytes(lambda: x @ weight) == 5 * 7 * 4
        assert measure.saved_bytes(lambda: x @ weight, [weight]) == 0
        assert measure.saved_bytes(lambda: x @ weight.T.contiguous().T, [weight]) == 5 * 7 * 4

    def test_graph_that_is_let_go_of_does_not_count(self):
        assert measure.saved_bytes(statistic_let_go_of()) == 10 * 4
        assert measure.saved_bytes(lambda: leaf(9, 9).exp().detach()) == 0

    def test_the_backward_pass_still_runs(self):
        x = leaf(6)
        gradients = []

        def forward():
            y = x.exp()
            gradients.append(torch.autograd.grad(y.sum(), x, retain_graph=True)[0])
            return y

        assert measure.saved_bytes(forward) == 6 * 4
        assert torch.equal(gradients[0], x.detach().exp())


class TestAllocations:
    def test_alive_and_peak(self):
        def call():
            kept = torch.empty(1000)
            torch.empty(3000)
            return kept

        assert measure.allocations(call, CPU) == measure.Allocations(alive=4000, peak=16000)

    def test_what_was_there_before_counts_as_nothing(self):
        held = [torch.empty(1000)]
        assert measure.allocations(held.clear, CPU).alive <= 0
        assert measure.allocations(lambda: torch.empty(10), CPU).alive == 40

    def test_a_hidden_tensor_is_seen(self):
        x = leaf(100)
        assert measure.saved_bytes(lambda: Hides.apply(x)) == 0
        assert measure.allocations(lambda: Hides.apply(x), CPU).alive == 100 * 4 + 4

    def test_agrees_with_autograd_on_a_model(self, case):
        plain = methods.method("plain", case)
        assert plain.forward is not None
        plain.forward()
        saved = measure.saved_bytes(plain.forward, case.constants())
        assert saved > 6 * 32 * 8
        # the leaf and the logits are alive whether or not they are saved
        extra = measure.allocations(plain.forward, CPU).alive - saved
        assert 0 <= extra <= 6 * 32 * 8 + 100 * 8 + 16


@pytest.mark.skipif(not measure.CLEAR.exists(), reason="needs Linux's /proc")
def test_resident_memory_rises_by_what_is_touched():
    size = 64 << 20
    measured = measure.resident(lambda: torch.ones(size // 4).sum())
    assert measured is not None
    assert 0.9 * size <= measured.peak - measured.before <= 1.5 * size


def test_each_round_begins_with_another_step():
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = measure.times_by_turns(steps, 3, CPU)
    assert "".join(calls) == "abcbcacab"
    assert all(len(values) == 3 for values in seconds.values())


def test_ratios_are_of_the_same_round():
    spread = measure.ratios([2.0, 30.0, 8.0], [1.0, 10.0, 2.0])
    assert spread == measure.Spread(2.5, 3.0, 3.5)
    assert measure.Spread.of([4.0]) == measure.Spread(4.0, 4.0, 4.0)


def test_device_that_is_not_there():
    with pytest.raises(SystemExit, match="not on 'meta'"):
        measure.check_device("meta")
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="no CUDA device"):
            measure.check_device("cuda")


@pytest.fixture(scope="module")
def case():
    return works.build({"work": "tiny", "tokens": 6, "dtype": "float64", "device": "cpu"})


class TestMethods:
    def test_position(self, case):
        explain = methods.method("attnlrp", case).explain
        assert torch.equal(explain(None), explain(5))
        assert explain(2)[0, 3:].abs().max() == 0
        assert explain(2)[0, :3].abs().min() > 0

    def test_unknown_preset(self, case):
        with pytest.raises(ValueError, match="no preset 'nonesuch'"):
            methods.method("nonesuch", case)

    def test_changes_of_classes_are_put_in_and_out(self):
        class Target:
            kept, changed, gone = 1, 2, 3

        before = dict(vars(Target))
        Target.changed, Target.added = 20, 4
        del Target.gone
        after = dict(vars(Target))
        methods._put([Target], [after], [before])
        assert (Target.kept, Target.changed, Target.gone) == (1, 2, 3)
        assert not hasattr(Target, "added")
        methods._put([Target], [before], [after])
        assert (Target.kept, Target.changed, Target.added) == (1, 20, 4)
        assert not hasattr(Target, "gone")


class TestWorker:
    def test_in_a_process_of_its_own(self, tmp_path):
        place = jobs.Workplace("cpu", 1, tmp_path)
        result = place.run(
            place.job("cost", "tiny", 8, "float32", methods=["plain", "nonesuch"], rounds=2)
        )
        assert len(result["seconds"]["plain"]) == 2
        assert result["saved"]["plain"] > 0
        assert result["failed"] == {"nonesuch": "ValueError: lxt has no preset 'nonesuch'"}
        assert result["machine"]["threads"] == 1

    def test_failure_says_why(self, tmp_path, monkeypatch):
        place = jobs.Workplace("cpu", None, tmp_path)
        asked, answer = tmp_path / "job.json", tmp_path / "result.json"
        job = place.job("resident", "tiny", 8, "float32", methods=["nonesuch"])
        asked.write_text(json.dumps(job))
        monkeypatch.setattr(sys, "argv", ["worker.py", str(asked), str(answer)])
        with pytest.raises(ValueError, match="no preset 'nonesuch'"):
            worker.main()
        python = tmp_path / "python"  # which has the worker's answer to that
        python.write_text(f'#!/bin/sh\ncp {answer} "$3"\n')
        python.chmod(0o755)
        with pytest.raises(jobs.JobFailed, match="ValueError: lxt has no preset 'nonesuch'"):
            place.run(job, python)

    def test_a_method_that_fails_leaves_the_others(self, monkeypatch):
        def fails(case):
            raise MemoryError("too long")

        monkeypatch.setitem(methods.PEERS, "plain", fails)
        spec = {"work": "tiny", "tokens": 4, "dtype": "float32", "device": "cpu"}
        ask = {"kind": "cost", "methods": ["plain", "attnlrp"], "rounds": 1}
        result = worker.perform({**spec, **ask})
        assert result["failed"] == {"plain": "MemoryError: too long"}
        assert list(result["seconds"]) == ["attnlrp"]

    def test_python_that_does_not_run(self, tmp_path):
        place = jobs.Workplace("cpu", 1, tmp_path)
        with pytest.raises(jobs.JobFailed, match="ended with code 1: no word"):
            place.run(place.job("cost", "tiny", 8, "float32"), Path("/bin/false"))


class TestEnvironments:
    def test_what_pip_is_asked_for(self):
        release = torch.__version__.split("+")[0]
        assert environments.PEERS["lxt"].pip_arguments() == [
            f"torch=={release}",
            "transformers==4.52.4",
            "--no-binary",
            "lxt",
            "lxt==2.1",
        ]

    def test_methods_are_there(self):
        named = {name for peer in environments.PEERS.values() for name in peer.methods}
        assert named == set(methods.PEERS)

    def test_packages_that_cannot_be_had(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
        with pytest.raises(environments.EnvironmentFailed, match="No matching distribution"):
            environments.python_of("autolrp", tmp_path)


class TestReport:
    def test_command_without_its_outputs(self, monkeypatch):
        words = ["/x/cost.py", "--json", "a", "--models", "tiny", "--markdown", "--json=b"]
        monkeypatch.setattr(sys, "argv", words)
        assert report.command() == "python benchmarks/cost.py --models tiny"

    def test_markdown_of_a_table(self):
        table = report.Table("Title", ["method", "MB"])
        table.add("a|b", "1.0")
        assert table.markdown().splitlines() == [
            "### Title",
            "",
            "| method | MB |",
            "| --- | --: |",
            "| a¦b | 1.0 |",
        ]
        with pytest.raises(ValueError, match="1 cells for 2 columns"):
            table.add("alone")

    def test_numbers(self):
        assert report.megabytes(1_234_567_890) == "1,234.6"
        assert report.share(1, 4) == "0.25"
        assert report.share(None, 4) == report.share(1, 0) == report.NOTHING
        assert [report.short(x) for x in (0.012345, 1.2345, 123.45)] == ["0.0123", "1.23", "123"]


def test_counts_are_positive():
    with pytest.raises(ArgumentTypeError, match="0 is less than 1"):
        jobs.positive("0")


@pytest.mark.parametrize(("count", "found"), [(4, [1, 3, 5, 7]), (1, [7]), (8, list(range(8)))])
def test_positions_are_spread_over_all_tokens(count, found):
    assert scaling._spread_out(count, 8) == found


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run a script at once in this process: what it printed, and its JSON."""
    import transformers

    verbosity = transformers.logging.get_verbosity()

    def perform(_, job, python=None):
        assert python is None
        return json.loads(json.dumps(worker.perform(json.loads(json.dumps(job)))))

    def run(script, *arguments):
        path = tmp_path / "result.json"
        words = [script.__file__, "--cache", str(tmp_path), "--json", str(path), *arguments]
        monkeypatch.setattr(sys, "argv", words)
        script.main()
        return capsys.readouterr().out, json.loads(path.read_text(encoding="utf-8"))

    monkeypatch.setattr(jobs.Workplace, "run", perform)
    yield run
    transformers.logging.set_verbosity(verbosity)


class TestScripts:
    def test_cost(self, run):
        shown, written = run(
            cost, "--models", "tiny", "--tokens", "8", "--dtypes", "float32", "bfloat16",
            "--repeats", "2", "--composites", "attnlrp", "nonesuch", "--markdown",
        )  # fmt: skip
        assert shown.startswith("## Cost of one explanation\n\n`python benchmarks/cost.py ")
        assert "### Llama, 2 layers of 32, random, 8 tokens, bfloat16" in shown
        assert "| nonesuch: ValueError: lxt has no preset 'nonesuch' | – |" in shown
        first, second = written["results"]
        assert len(first["seconds"]["attnlrp"]) == 2
        assert first["saved"]["attnlrp"] < first["saved"]["plain"]
        assert first["alive"]["attnlrp"] < first["alive"]["plain"]
        assert second["saved"]["plain"] < first["saved"]["plain"]
        assert written["machine"]["torch"] == torch.__version__

    def test_cost_with_a_peer_that_cannot_be_had(self, run, monkeypatch):
        def fails(*_):
            raise environments.EnvironmentFailed("no index")

        monkeypatch.setattr(cost, "python_of", fails)
        shown, _ = run(
            cost, "--models", "tiny", "--peer-models", "tiny", "--peers", "lxt", "--tokens", "4",
            "--dtypes", "float32", "--repeats", "1", "--no-resident",
        )  # fmt: skip
        assert "lxt: no index" in shown

    def test_scaling(self, run):
        shown, written = run(
            scaling, "--model", "tiny", "--lengths", "8", "16", "--depths", "2",
            "--depth-tokens", "8", "--targets", "2", "8", "--target-tokens", "8", "--sample", "2",
            "--repeats", "1", "--checkpoints", "sqrt", "--markdown",
        )  # fmt: skip
        tables = [line for line in shown.splitlines() if line.startswith("### ")]
        assert [title.rsplit("by ", 1)[1] for title in tables] == [
            "length",
            "depth",
            "number of targets",
        ]
        lengths = [r for r in written["results"] if r.get("axis") == "tokens"]
        assert lengths[0]["saved"]["plain"] < lengths[1]["saved"]["plain"]
        assert not any(result.get("failed") for result in written["results"])
        targets = [r for r in written["results"] if "targets" in r]
        assert [r["targets"] for r in targets] == [2, 8]
        assert all(r["difference"] < 1e-5 for r in targets)

    def test_more_targets_than_tokens(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["scaling.py", "--target-tokens", "8"])
        with pytest.raises(SystemExit):
            scaling.parse()
        assert "8 tokens have no more than 8 next tokens" in capsys.readouterr().err

    def test_throughput(self, run, monkeypatch, smollm2):
        text = "Is it not? The sea was calm and grey! One more of these; and then another one?"
        monkeypatch.setattr(throughput, "book_excerpts", lambda: [text])
        monkeypatch.setattr(throughput.lxt, "load_model", lambda *_, **__: smollm2)
        shown, written = run(throughput, "--sentences", "3", "--batch-sizes", "2", "--repeats", "1")
        assert "batch_size=2" in shown
        assert [r["way"] for r in written["results"]] == ["one at a time", "batch_size=2"]
        assert all(r["difference"] < 1e-4 for r in written["results"])

    def test_fewer_sentences_than_asked_for(self, monkeypatch):
        monkeypatch.setattr(throughput, "book_excerpts", lambda: ["Too short!"])
        with pytest.raises(SystemExit, match="the corpus has 0 sentences, not 5"):
            throughput.sentences(5)
