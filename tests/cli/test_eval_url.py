"""`ropewalk eval --url`: a server answers in place of a local model."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from tests.helpers.completions_server import GreedyModel, run_server

import ropewalk as rw
from ropewalk.evaluate.evaluation_store import EvaluationStore
from ropewalk.models.load import load_tokenizer

SAMPLES = 8


@pytest.fixture
def server_model(tiny_folder):
    model, tokenizer = rw.load(str(tiny_folder), dtype="float32")
    return GreedyModel(model, tokenizer)


@pytest.fixture
def argv(tiny_folder, tmp_path):
    path = tmp_path / "questions.jsonl"
    rows = [{"context": f"w1 w2 w{i}", "input": "w4", "answers": "w5"} for i in range(SAMPLES)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    task = f"generate:{path},max_new_tokens=6,metric=f1"
    return ["eval", tiny_folder, "--scaling", "none", "--lengths", "40", "--task", task, "--samples", SAMPLES]


def count_samples(folder):
    with EvaluationStore(folder) as store:
        return sum(len(cell.sample_results) for cell in store.cells())


def read_answers(folder):
    samples = map(json.loads, (folder / "samples.jsonl").read_text().splitlines())
    return {sample["index"]: sample["answer"] for sample in samples}


def test_the_answers_are_those_of_the_local_model(run, argv, server_model, tmp_path):
    assert run(*argv, "--dtype", "float32", "--out", tmp_path / "local")[0] == 0
    with run_server(server_model) as url:
        status, _, err = run(*argv, "--url", url, "--jobs", "3", "--out", tmp_path / "server")
        assert status == 0, err
        requests = len(server_model.requests)
        assert run(*argv, "--url", url, "--out", tmp_path / "server")[0] == 0
    assert read_answers(tmp_path / "server") == read_answers(tmp_path / "local")
    assert len(read_answers(tmp_path / "server")) == SAMPLES
    assert len(server_model.requests) == requests == SAMPLES, "the second run needs no request"


@pytest.mark.parametrize(("chat", "turns"), [("auto", ["w90", "w91"]), ("off", [])])
def test_the_template_of_the_tokenizer_is_applied_before_the_server(run, argv, tiny_folder, tmp_path, chat, turns):
    folder = tmp_path / "chat_model"
    shutil.copytree(tiny_folder, folder)
    tokenizer = load_tokenizer(str(folder))
    tokenizer.chat_template = "w90 {{ messages[0]['content'] }} {% if add_generation_prompt %}w91{% endif %}"
    tokenizer.save_pretrained(folder)
    argv[1] = folder
    prompts = []

    def answer(request):
        prompts.append(tokenizer.decode(request["prompt"]).split())
        return 200, {"choices": [{"text": "w5"}]}

    with run_server(answer) as url:
        status, _, err = run(*argv, "--url", url, "--chat", chat, "--out", tmp_path / "out")
    assert status == 0, err
    assert sorted(prompts) == [[*turns[:1], "w1", "w2", f"w{i}", "w4", *turns[1:]] for i in range(SAMPLES)]


def test_results_of_a_server_are_not_mixed_with_those_of_a_local_model(run, argv, server_model, tmp_path):
    assert run(*argv, "--dtype", "float32", "--out", tmp_path / "out")[0] == 0
    with run_server(server_model) as url:
        status, _, err = run(*argv, "--url", url, "--out", tmp_path / "out")
    assert (status, len(err.strip().splitlines())) == (2, 1)


def test_answers_before_a_server_fails_are_kept(run, argv, server_model, tmp_path, monkeypatch):
    monkeypatch.setattr("ropewalk.json_requests.sleep", lambda seconds: None)
    is_repaired = []

    def fail_after_five(request):
        if len(server_model.requests) >= 5 and not is_repaired:
            return 503, {}
        return server_model(request)

    with run_server(fail_after_five) as url:
        status, _, err = run(*argv, "--url", url, "--jobs", "1", "--out", tmp_path / "out")
        assert status == 1
        assert "did not respond" in err
        assert len(read_answers(tmp_path / "out")) == 5
        is_repaired.append(True)
        assert run(*argv, "--url", url, "--out", tmp_path / "out")[0] == 0
    assert len(read_answers(tmp_path / "out")) == SAMPLES
    assert len(server_model.requests) == SAMPLES


def test_a_task_that_needs_log_probabilities_is_an_input_error(run, tiny_folder, text_file, server_model, tmp_path):
    options = ("--scaling", "none", "--lengths", "40", "--task", f"perplexity:{text_file}", "--samples", "1")
    with run_server(server_model) as url:
        status, _, err = run("eval", tiny_folder, *options, "--url", url, "--out", tmp_path / "out")
    assert status == 2
    assert "only generate" in err


@pytest.mark.parametrize("options", [["--scaling", "yarn:factor=2"], ["--ray"]])
def test_a_server_excludes_several_scalings_and_ray(run, argv, server_model, tmp_path, options):
    with run_server(server_model) as url:
        status, _, err = run(*argv, *options, "--url", url, "--out", tmp_path / "out")
    assert status == 2
    assert "one scaling" in err


@pytest.mark.parametrize("answered", [0, 3])
def test_ctrl_c_does_not_wait_for_a_hanging_server_and_the_run_can_go_on(run, argv, server_model, tmp_path, answered):
    is_released, hangs = threading.Event(), threading.Semaphore(0)
    lock = threading.Lock()

    def hang(request):
        with lock:
            if is_released.is_set() or len(server_model.requests) < answered:
                return server_model(request)
        hangs.release()
        is_released.wait()
        return 500, {}

    # The handler is set explicitly, because a background job of a shell script ignores SIGINT.
    set_handler = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    with run_server(hang) as url:
        arguments = [*argv, "--url", url, "--jobs", "2", "--out", tmp_path / "out"]
        command = [sys.executable, "-c", f"{set_handler}from ropewalk.cli import main; main()", *map(str, arguments)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
            for _ in range(2):
                hangs.acquire()  # both requests are in flight, and answered only after the command has ended
            while count_samples(tmp_path / "out") < answered:
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            try:
                message = process.communicate(timeout=100)[1]
            finally:
                process.kill()
                is_released.set()
        assert process.returncode == 130, message
        assert "finished samples are safe in" in message
        assert "Traceback" not in message
        assert len(read_answers(tmp_path / "out")) == answered
        assert run(*arguments)[0] == 0
    assert len(read_answers(tmp_path / "out")) == SAMPLES
    assert len(server_model.requests) == SAMPLES, "the stored answers are not asked for again"


SECRET = "s3cret"


def test_the_key_is_sent_and_written_nowhere(run, argv, server_model, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", SECRET)
    log = []
    with run_server(server_model, log=log) as url:
        status, out, err = run(*argv, "--url", url, "--api-key-env", "MY_KEY", "--out", tmp_path / "out")
        assert status == 0, err
        assert {headers.get("Authorization") for _, headers in log} == {f"Bearer {SECRET}"}
        log.clear()
        monkeypatch.setenv("OPENAI_API_KEY", SECRET)
        run(*argv, "--url", url, "--samples", "2", "--out", tmp_path / "without")
        assert {headers.get("Authorization") for _, headers in log} == {None}, "a key that was not named is not sent"
    report_status, report_out, report_err = run("report", tmp_path / "out")
    assert report_status == 0, report_err
    assert SECRET not in out + err + report_out + report_err
    for path in (tmp_path / "out").iterdir():
        assert SECRET.encode() not in path.read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        ("--url", f"http://user:{SECRET}@127.0.0.1:9/v1"),
        ("--url", f"http://127.0.0.1:9/v1?key={SECRET}"),
        ("--url", f"http://user:{SECRET}@127.0.0.1:9/v1", "--ray"),
        ("--url", "http://127.0.0.1:9/v1", "--api-key-env", SECRET),
        ("--api-key-env", SECRET),
    ],
)
def test_credentials_in_the_wrong_place_are_refused_and_not_repeated(run, argv, tmp_path, options):
    status, out, err = run(*argv, *options, "--out", tmp_path / "out")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert SECRET not in err
    assert not (tmp_path / "out").exists()
