"""The scripts of `examples/` that need packages of this environment."""

import matplotlib.pyplot as plt

from test_examples import Run, line, numbers, run

__all__ = ["run"]  # the fixture


def test_quantized_llama(run: Run, smollm2) -> None:
    out = run("quantized_llama")
    for name, alike in (("8 bit", 0.999), ("4 bit", 0.95)):
        row = line(out, name)
        assert "predicts ' Ada', most for it ' Ada' (token 19)" in row
        assert numbers(row)[-1] > alike


def test_vit_gamma(run: Run, tmp_path) -> None:
    out = run("vit_gamma")
    assert "the model is right in 100%" in out
    shares = {
        gamma: [numbers(row)[-1] for row in out.splitlines() if f"conv γ {gamma:g}," in row]
        for gamma in (0.1, 0.25, 100)
    }
    assert [len(row) for row in shares.values()] == [3, 3, 3]
    means = [sum(row) / 3 for row in shares.values()]
    assert 45 < means[0] < means[1] < means[2]  # the square is 6% of an image
    assert plt.imread(tmp_path / "vit_gamma.png").std() > 0.05
