"""`modernbert bench`: measurements of a small model, its tables and its file."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from commands import run_here

from modernbert import ModernBert
from modernbert.planning.bench_model import bench
from modernbert.planning.bench_options import BenchConfig


@pytest.fixture
def config(tmp_path: Path, small_bert: ModernBert) -> BenchConfig:
    small_bert.save(tmp_path / "model")
    return BenchConfig(
        str(tmp_path / "model"), documents=3, runs=2, calls=3, device="cpu", output=tmp_path / "bench.json"
    )


def test_speed_latency_and_memory_are_printed_and_written(
    config: BenchConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    result = bench(config)
    assert config.output is not None and json.loads(config.output.read_text()) == asdict(result)
    # The model takes 1,000 tokens.
    assert [row.set for row in result.speed] == ["short-fixed", "short-variable"]
    assert result.skipped == ["long-fixed", "long-variable"]
    assert [row.num_tokens for row in result.latency] == [16, 128, 512]
    assert result.speed[0].num_tokens == 3 * 512 and len(result.speed[0].tokens_per_s) == 2
    assert all(row.peak_memory > 0 and min(row.tokens_per_s) > 0 for row in result.speed)
    assert all(0 < row.p50_ms <= row.p95_ms for row in result.latency)
    printed = capsys.readouterr().out
    assert "short-variable" in printed and "p95 ms" in printed and "at most 1,000 tokens" in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--runs", "0"], "--runs"),
        (["--documents", str(10**12)], "--documents"),
        (["--sets", "medium"], "--sets"),
        (["--device", "nowhere"], "nowhere"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_measured(
    config: BenchConfig, words: list[str], said: str
) -> None:
    done = run_here("bench", config.model, "--output", str(config.output), *words)
    assert done.returncode == 2 and said in done.stderr and done.stdout == ""
    assert config.output is not None and not config.output.exists()
