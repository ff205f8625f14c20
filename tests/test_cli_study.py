"""`minqkv study` and records of other code: shown apart, used only with --accept-code."""

import json

import pytest

from minqkv.study import execute

FLAGS = ("study", "--seq-len", 4, "--n-embd", 8, "--n-layer", 1, "--n-head", 2, "--steps", 2,
         "--tasks", "copy", "--variants", "qkv,q-k=v", "--jobs", 1, "--out", "here")  # fmt: skip


def said(err):
    return " ".join(err.split())


@pytest.fixture
def older(cli, monkeypatch):
    """Two of four runs on record from version 0.1.0-abc."""
    with monkeypatch.context() as patch:
        patch.setattr(execute, "code_version", lambda: "0.1.0-abc")
        assert cli(*FLAGS, "--seeds", 1)[0] == 0
    return (*FLAGS, "--seeds", 2)


def test_records_of_other_code_are_not_used(older, cli):
    code, out, err = cli(*older, "--dry-run")
    assert code == 0
    line = "2 of the 4 runs are on record from other code (0.1.0-abc); --accept-code uses them"
    assert line in said(err)
    assert line not in out
    assert "4 runs, 0 of them on record" in out
    plan = json.loads(cli(*older, "--dry-run", "--json")[1])
    assert (plan["recorded"], plan["other_code"]) == (0, {"0.1.0-abc": 2})
    code, out, _ = cli(*older, "--json")
    assert code == 0
    assert len(json.loads(out)["runs"]) == 4
    assert len(list((execute.Path("here") / "runs").glob("*.json"))) == 2 + 4


def test_accept_code_uses_them(older, cli):
    assert "4 runs, 2 of them on record" in cli(*older, "--accept-code", "--dry-run")[1]
    code, _, err = cli(*older, "--accept-code")
    assert code == 0
    assert "(0.1.0-abc); they are used here" in said(err)
    assert len(list((execute.Path("here") / "runs").glob("*.json"))) == 2 + 2


def test_without_such_records_nothing_is_said(cli):
    _, _, err = cli(*FLAGS, "--seeds", 1)
    assert "other code" not in err
    _, out, err = cli(*FLAGS, "--seeds", 1, "--dry-run")
    assert "other code" not in err
    assert "2 runs, 2 of them on record" in out


def test_a_dry_run_says_each_line_once(cli):
    arms = ("--variants", "qkv,q-k=v", "--equal-bytes", 16, "--n-head", 4)
    _, out, err = cli(*FLAGS, *arms, "--seeds", 1, "--dry-run")
    both = said(out + err)
    assert both.count("on record") == both.count("left out: ") == 1
    assert cli(*FLAGS, "--seeds", 1)[2].count("2 runs, 0 of them on record") == 1


def test_contrasts_are_planned_for_the_preset_as_it_is(cli):
    said = "its planned contrasts are left out"
    _, _, err = cli("study", "--preset", "recall-full", "--seeds", 2, "--dry-run")
    assert said in " ".join(err.split())
    _, _, err = cli("study", "--seeds", 2, "--dry-run")
    assert said not in " ".join(err.split())
