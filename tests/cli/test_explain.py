from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tests.helpers.real_configs import real_config_path

from ropewalk.cli.demo import SCALINGS, explain_curve
from ropewalk.evaluate.curve_store import CurveStore


def test_explain_writes_a_page(run, tmp_path):
    page = tmp_path / "new" / "page.html"
    status, out, _ = run("explain", real_config_path("gpt_oss_20b"), "--target", "256k", "--out", page)
    assert (status, out) == (0, f"Page: {page}\n")
    assert "<h1>How" in page.read_text("utf-8")


def test_explain_as_json_names_what_is_compared(run, tmp_path):
    page = tmp_path / "page.html"
    options = ("--scaling", "yarn:factor=4", "--scaling", "linear:factor=4", "--language", "zh", "--json")
    options += ("--pictures", tmp_path / "pictures")
    _, out, _ = run("explain", real_config_path("qwen3_30b_a3b_yarn"), "--target", "128k", "--out", page, *options)
    document = json.loads(out)
    assert document["scalings"] == ["none", "yarn:factor=4", "linear:factor=4"]
    assert (document["original_length"], document["target"], document["page"]) == (32_768, 131_072, str(page))
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"circles.svg", "pairs.svg"}
    assert '<html lang="zh">' in page.read_text("utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target", "32q"), "target: got '32q'"),
        (("--target", "32k", "--scaling", "yarn:factr=4"), "did you mean factor?"),
        (("--target", "32k", "--scaling", "leaky-rerope"), "leaky-rerope changes positions"),
        (("--target", "32k", "--curve", "missing"), "curve: got"),
        (("--target", "32k", "--eval", "missing"), "folder: got"),
        (("--target", "32k", "--language", "fr"), "language: got 'fr'"),
    ],
)
def test_a_mistake_is_one_line(run, tmp_path, options, message):
    page = tmp_path / "page.html"
    status, out, err = run("explain", real_config_path("gpt_oss_20b"), "--out", page, *options)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not page.exists()


def test_explain_loads_neither_torch_nor_transformers(tmp_path):
    arguments = ["explain", str(real_config_path("gpt_oss_20b")), "--target", "256k", "--out", str(tmp_path / "p.html")]
    code = (
        "import sys; from ropewalk.cli import run; assert run(sys.argv[1:]) == 0; "
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=120)


def test_the_demo_explains_its_scalings_beside_its_curve(tmp_path):
    store = CurveStore(tmp_path, {"model": "smollm2", "text": "pydoc", "dtype": "bfloat16"})
    numbers = {"ppl": 10.0, "ppl_last": 9.0, "nll": 2.0, "tokens": 8191, "seconds": 1.0, "chunk": None, "policy": None}
    store.add({"scaling": "none", "length": 8192, **numbers})
    text = explain_curve(tmp_path).read_text("utf-8")
    assert all(f"<code>{scaling}</code>" in text for scaling in SCALINGS)
    assert "smollm2 reads pydoc in bfloat16." in text
