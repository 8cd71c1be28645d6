"""Damaged files of results and of data: curve.json, results.sqlite and JSON lines. See tests/helpers/fuzz.py."""

from __future__ import annotations

import json
import random
import sqlite3
import tempfile
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from unittest import mock

from tests.helpers.fake_results import MODEL, write_mixed_store
from tests.helpers.fuzz import Tally, corrupt, mutate

# Contents of a file or a response that are not what a reader expects.
ODD_CONTENTS = [
    *(b"", b"null", b"3", b"[]", b"{}", b'"text"', b"NaN", b"1e999", b"9" * 5000, b"\x00" * 100),
    *(b"\xff\xfe\x00", b"\xef\xbb\xbf{}", b"[" * 100_000, b'{"a":' * 9999, b'{"error": "no"}'),
    *(b"<html><body>502 Bad Gateway</body></html>", b'data: {"choices": []}\n\ndata: [DONE]'),
    *(b'{"data": "text", "choices": "text"}', b'{"choices": [{"text": null}]}'),
    *(b'{"choices": [{"text": "\\ud800"}]}', b'{"choices": [{"message": {"content": "a"}}]}'),
    *(b'{"data": [{"id": "\\udfff"}]}', b'{"rows": [{"scaling": "\\ud800"}]}'),
]
SQL_JUNK = [
    *(None, 0, -1, 1.5, 10**18, float("inf"), "", "a", "\x00", "ü" * 50, b"", b"\xff"),
    *("[[]]", "{}", '"\\ud800"', "9" * 400, "[" * 50_000),
]


def fuzz_results(count, seed):
    from ropewalk.evaluate.curve_store import CurveRow, CurveStore
    from ropewalk.evaluate.evaluation_store import EvaluationStore
    from ropewalk.evaluate.tasks import longbench, parse_task
    from ropewalk.report.evaluation import summary_table
    from ropewalk.report.page import write_report
    from ropewalk.report.pictures import PictureWriter

    header = {"model": "m", "text": "t", "dtype": "float32", "text_sha256": "0", "model_digest": "sha256:0"}
    row = CurveRow(
        scaling="none", chunk=16, policy=None, length=64, ppl=3.0, ppl_last=3.0, nll=1.1, tokens=63, seconds=0.1
    )
    question = {"context": "a b c " * 10, "input": "d", "answers": ["e", "f"]}
    document = {**question, "length": 10, "all_classes": None, "dataset": "hotpotqa", "language": "en", "_id": "1"}

    def read_curve(path):
        store = CurveStore(path.parent, header)
        with store.locked():
            store.add(row)

    def read_questions(path):
        parse_task(f"generate:{path}").make_samples(CharacterTokenizer(), 500, 10, seed=0)

    def report(folder, with_pictures):
        pictures = nullcontext() if with_pictures else mock.patch.object(PictureWriter, "draw", return_value=[])
        with EvaluationStore(folder) as store, pictures:
            summary_table(store.cells())
            write_report(store, folder / "report.html")

    def resume(folder):
        with EvaluationStore(folder, MODEL) as store:
            store.begin("again", {}, {})
            store.finished_keys()
            store.export()

    draw, tally = random.Random(seed), Tally(allow_runtime_errors=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_mixed_store(folder / "valid").close()
        database = (folder / "valid" / "results.sqlite").read_bytes()
        curve, results, lines = folder / "curve" / "curve.json", folder / "eval" / "results.sqlite", folder / "a.jsonl"
        curve.parent.mkdir()
        results.parent.mkdir()
        for index in range(count):
            case = damage_json({**header, "rows": [row, {**row, "length": 100}]}, draw)
            curve.write_bytes(case)
            tally.run("curve", case, read_curve, curve)
            case = damage_json(draw.choice([question, document]), draw)
            lines.write_bytes(b"\n".join([json.dumps(document).encode(), case]))
            tally.run("questions", case, read_questions, lines)
            tally.run("longbench", case, longbench._read_documents, lines, 10)
            results.write_bytes(database)
            case = damage_database(results, draw)
            tally.run("report", case, report, results.parent, index % 50 == 0)
            tally.run("resume", case, resume, results.parent)
            results.with_name("results.sqlite-journal").unlink(missing_ok=True)
    return tally


class CharacterTokenizer:
    """One token per character."""

    def __call__(self, text, **_):
        return {"input_ids": [ord(character) for character in text]}

    def decode(self, token_ids):
        return "".join(map(chr, token_ids))


def damage_json(document, draw):
    """Return the bytes of a JSON document with wrong fields or values, with wrong bytes, or of something else."""
    kind = draw.random()
    if kind < 0.1:
        return draw.choice(ODD_CONTENTS)
    changed = mutate(document, draw) if kind < 0.7 and isinstance(document, dict) else document
    content = json.dumps(changed).encode()
    return corrupt(content, draw) if kind > 0.6 else content


def damage_database(path, draw):
    """Damage a file of results in place, and return a description of the damage."""
    if draw.random() < 0.4:
        path.write_bytes(corrupt(path.read_bytes(), draw, within=draw.choice([100, 4096, 10**9])))
        return "corrupt bytes"
    statements = []
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        for _ in range(draw.randint(1, 2)):
            table = draw.choice(["about", "runs", "cells", "samples"])
            columns = [name for _, name, *_ in database.execute(f"pragma table_info({table})")]
            with suppress(sqlite3.Error, IndexError):  # a constraint prevents it, or the table is gone
                statement, values = draw_statement(database, table, draw.choice(columns), draw)
                database.execute(statement, values)
                statements.append((statement, values))
    return statements


def draw_statement(database, table, column, draw):
    """Return an SQL statement that damages a table, and its values."""
    kind = draw.random()
    if kind < 0.05:
        return draw.choice([f"drop table {table}", f"delete from {table}"]), []
    if kind < 0.1:
        return f"alter table {table} rename column {column} to other", []
    (value,) = database.execute(f"select {column} from {table} limit 1").fetchone() or (None,)
    condition = "" if table in ("about", "samples") else draw.choice(["", f" where rowid % 2 = {draw.randint(0, 1)}"])
    return f"update {table} set {column} = ?{condition}", [damage_value(value, draw)]


def damage_value(value, draw):
    """Return a damaged version of the JSON in a column, or junk."""
    try:
        document = json.loads(value)
    except (TypeError, ValueError, RecursionError):
        document = None
    if document is None or draw.random() < 0.3:
        return draw.choice(SQL_JUNK)
    return damage_json(document, draw).decode("utf-8", "replace")
