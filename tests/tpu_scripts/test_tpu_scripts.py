"""The shell scripts: shellcheck, dry runs against goldens, whole lives against a fake gcloud."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "tpu_scripts"
HERE = ["--name=clip", "--zone=us-central2-b"]
TRAIN = "experiments.chinese_clip.train"

# Plays two workers: `ssh` runs the command in the home of each, `scp` copies into both.
FAKE_GCLOUD = """\
#!{python}
import json, os, shutil, subprocess, sys
with open(os.environ["FAKE_LOG"], "a") as log:
    print(json.dumps(sys.argv), file=log)
verb = sys.argv[4]
command = [a.partition("=")[2] for a in sys.argv if a.startswith("--command=")]
assert "--worker=all" in sys.argv or verb in ("create", "delete")
for worker in ("worker 0", "worker 1"):
    home = os.path.join(os.environ["FAKE_CLOUD"], worker)
    os.makedirs(home, exist_ok=True)
    if verb == "scp":
        shutil.copy(sys.argv[5], os.path.join(home, sys.argv[6].partition(":")[2]))
    if verb == "ssh":
        os.environ["HOME"] = home
        result = subprocess.run(["bash", "-c", command[0]], cwd=home)
        if result.returncode:
            sys.exit(result.returncode)
sys.exit(int(os.environ.get("FAKE_STATUS", "0")))
"""

# Stands for python3 and for the interpreter of the virtual environment that uv makes.
FAKE_PYTHON = """\
#!{python}
import json, os, shutil, sys
with open("calls.jsonl", "a") as log:
    print(json.dumps([*sys.argv[1:], os.environ.get("GREETING", "")]), file=log)
if sys.argv[1:4] == ["-m", "uv", "venv"]:
    os.makedirs(".venv/bin")
    shutil.copy(__file__, ".venv/bin/python")
sys.exit(3 if "fail" in sys.argv else 0)
"""


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace("{python}", sys.executable))
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path):
    """A small checkout in a directory whose name is hard to quote, with the real scripts."""
    root = tmp_path / "it's a checkout"
    shutil.copytree(SCRIPTS, root / "tpu_scripts")
    for name in ("jaxlab/__init__.py", "experiments/chinese_clip/train.py", ".git/config"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    return root


@pytest.fixture
def call(checkout, tmp_path):
    """call("create.sh", ...) runs a script with the fake tools first in PATH."""
    executable(tmp_path / "bin/gcloud", FAKE_GCLOUD)
    executable(tmp_path / "bin/python3", FAKE_PYTHON)
    (tmp_path / "log").touch()

    def run(script, *arguments, **environment):
        return subprocess.run(
            ["bash", str(checkout / "tpu_scripts" / script), *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=os.environ
            | {
                "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
                "FAKE_LOG": str(tmp_path / "log"),
                "FAKE_CLOUD": str(tmp_path / "cloud"),
            }
            | environment,
        )

    return run


@pytest.fixture
def logged(tmp_path):
    """The commands that the fake gcloud received."""
    return lambda: [
        ["gcloud", *json.loads(line)[1:]] for line in (tmp_path / "log").read_text().splitlines()
    ]


def test_shellcheck_is_clean():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    names = sorted(p.name for p in SCRIPTS.glob("*.sh"))
    assert names == ["common.sh", "create.sh", "delete.sh", "launch.sh", "setup.sh"]
    command = [str(shellcheck) if shellcheck.exists() else "shellcheck", "-x", *names]
    result = subprocess.run(command, cwd=SCRIPTS, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_scripts_can_be_executed():
    for script in SCRIPTS.glob("*.sh"):
        assert os.access(script, os.X_OK) == (script.name != "common.sh"), script


# --- dry runs -------------------------------------------------------------------------------------

CREATE = "gcloud compute tpus tpu-vm create clip"
SSH = "gcloud compute tpus tpu-vm ssh clip --worker=all"
GOLDENS = [
    (
        ["create.sh", *HERE, "--type=v5litepod-16", "--spot"],
        f"{CREATE} --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite --spot"
        " --zone=us-central2-b",
    ),
    (
        ["create.sh", "--name", "clip", "--zone", "us-east5-a", "--type", "v6e-8",
         "--project", "p1", "--network=net", "--subnetwork=sub"],
        f"{CREATE} --accelerator-type=v6e-8 --version=v2-alpha-tpuv6e --network=net"
        " --subnetwork=sub --zone=us-east5-a --project=p1",
    ),
    (
        ["create.sh", *HERE, "--type=v9-8", "--version=v9-base"],
        f"{CREATE} --accelerator-type=v9-8 --version=v9-base --zone=us-central2-b",
    ),
    (
        ["delete.sh", *HERE, "--project=my-project"],
        "gcloud compute tpus tpu-vm delete clip --zone=us-central2-b --project=my-project",
    ),
    (
        ["launch.sh", *HERE, "--", "python", "-m", TRAIN, "--workdir=gs://b/1"],
        f"{SSH} '--command=cd jaxlab && .venv/bin/python -m {TRAIN} --workdir=gs://b/1'"
        " --zone=us-central2-b",
    ),
    (
        ["launch.sh", *HERE, "--dir=/mnt/my disk/jaxlab", "--env=A=b", "--", TRAIN, "--query=it's"],
        f"{SSH} '--command=cd '\\''/mnt/my disk/jaxlab'\\'' && env A=b .venv/bin/python -m {TRAIN}"
        " '\\''--query=it'\\''\\'\\'''\\''s'\\''' --zone=us-central2-b",
    ),
    (
        ["launch.sh", *HERE, "--detach", "--", TRAIN],
        f"{SSH} '--command=cd jaxlab && {{ nohup .venv/bin/python -m {TRAIN} > launch.log 2>&1"
        ' < /dev/null & echo "started on $(hostname), process $!"; }\' --zone=us-central2-b',
    ),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "want"), GOLDENS)
def test_dry_run_prints_the_exact_command_and_runs_nothing(call, logged, arguments, want):
    script, *rest = arguments
    result = call(script, "--dry-run", *rest)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == want + "\n"
    assert logged() == []


def test_dry_run_of_setup(call, checkout, logged):
    result = call("setup.sh", *HERE, "--dry-run", "--python=3.12")
    assert (result.returncode, result.stderr, logged()) == (0, "", [])
    words = shlex.split(result.stdout)
    starts = [i for i, word in enumerate(words) if word in ("tar", "gcloud")]
    tar, scp, install, greet = (
        words[i:j] for i, j in zip(starts, [*starts[1:], None], strict=True)
    )
    archive = f"{checkout}/build/jaxlab-clip.tar.gz"
    assert tar[:5] == ["tar", "-czf", archive, "-C", str(checkout)] and "--exclude=./.git" in tar
    assert scp[4:] == ["scp", archive, "clip:jaxlab-clip.tar.gz", "--worker=all", HERE[1]]
    assert install[4:7] == ["ssh", "clip", "--worker=all"]
    assert "uv venv --quiet --python 3.12 .venv" in install[7] and "-e '.[tpu]'" in install[7]
    assert greet[7].startswith("--command=cd jaxlab && .venv/bin/python -c ")
    assert not (checkout / "build").exists()


def test_examples_of_the_readme(call):
    text = (SCRIPTS / "README.md").read_text("utf-8")
    examples = re.findall(r"```console\n\$ tpu_scripts/(.*)\n((?:.+\n)+)```", text)
    assert [command.split(".")[0] for command, _ in examples] == ["create", "launch", "delete"]
    for command, want in examples:
        assert call(*shlex.split(command)).stdout == want


@pytest.mark.parametrize(("arguments", "_"), GOLDENS[:5])
def test_real_run_gives_gcloud_what_the_dry_run_printed(call, logged, arguments, _, tmp_path):
    for worker in (0, 1):
        executable(tmp_path / f"cloud/worker {worker}/jaxlab/.venv/bin/python", FAKE_PYTHON)
    script, *rest = arguments
    printed = call(script, "--dry-run", *rest).stdout
    result = call(script, *rest)
    assert result.returncode == 0, result.stderr
    assert result.stderr == f"+ {printed}"
    assert logged() == [shlex.split(printed)]


# --- the whole life, with two workers -------------------------------------------------------------


def calls(directory):
    return [json.loads(line) for line in (directory / "calls.jsonl").read_text().splitlines()]


def test_setup_then_launch_reaches_every_worker_unchanged(call, checkout, tmp_path):
    homes = [tmp_path / "cloud" / f"worker {i}" for i in (0, 1)]
    options = [*HERE, "--dir=my work/jaxlab"]
    for home in homes:
        stale = home / "my work/jaxlab/jaxlab/removed_since.py"
        stale.parent.mkdir(parents=True)
        stale.touch()
    result = call("setup.sh", *options)
    assert result.returncode == 0, result.stderr
    assert not (checkout / "build/jaxlab-clip.tar.gz").exists()

    hard = ['--query=饺子 it\'s "x" $HOME `id` \\ *', "--config.a=(1,2)", "", "line\nbreak"]
    arguments = ["--env=GREETING=a 'b' $c", "--", "python3", "-m", TRAIN, *hard]
    result = call("launch.sh", *options, *arguments)
    assert result.returncode == 0, result.stderr
    for home in homes:
        copy = home / "my work/jaxlab"
        assert (copy / "jaxlab/__init__.py").exists() and not (copy / ".git").exists()
        assert not (copy / "jaxlab/removed_since.py").exists()
        assert sorted(p.name for p in home.iterdir()) == ["my work"]
        *installing, greeting, run = calls(copy)
        assert [c[:4] for c in installing] == [
            ["-m", "pip", "install", "--quiet"],
            ["-m", "uv", "venv", "--quiet"],
            ["-m", "uv", "pip", "install"],
        ]
        assert "parallel.start_processes()" in greeting[1]
        assert run == ["-m", TRAIN, *hard, "a 'b' $c"]

    assert call("setup.sh", *options).returncode == 0
    again = [c[:3] for c in calls(homes[0] / "my work/jaxlab")[5:]]
    assert ["-m", "uv", "venv"] not in again and ["-m", "uv", "pip"] in again


def test_detached_run_leaves_a_log_and_the_failure_of_a_worker_is_ours(call, tmp_path):
    for worker in (0, 1):
        executable(tmp_path / f"cloud/worker {worker}/jaxlab/.venv/bin/python", FAKE_PYTHON)
    result = call("launch.sh", *HERE, "--detach", "--", TRAIN, "--seed=1")
    assert result.returncode == 0 and result.stdout.count("started on ") == 2
    assert (tmp_path / "cloud/worker 1/jaxlab/launch.log").exists()
    assert call("launch.sh", *HERE, "--", TRAIN, "fail").returncode == 3


def test_setup_stops_at_the_first_failure_and_tidies_up(call, checkout, logged):
    result = call("setup.sh", *HERE, FAKE_STATUS="7")
    assert result.returncode == 7
    assert [c[4] for c in logged()] == ["scp"]
    assert list((checkout / "build").iterdir()) == []


# --- wrong command lines --------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["create.sh", "setup.sh", "launch.sh", "delete.sh"])
def test_help_lists_every_option(call, script):
    result = call(script, "--help")
    assert result.returncode == 0 and result.stdout.startswith(("Creates", "Copies", "Runs", "Del"))
    parsed = set(re.findall(r"^ +(--[a-z-]+)(?: \||\))", (SCRIPTS / script).read_text(), re.M))
    assert len(parsed) >= 1
    for option in parsed | {"--name", "--zone", "--project", "--dry-run", "--help"}:
        assert option in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create.sh"], "missing --name --zone --type; see create.sh --help"),
        (["setup.sh", "--zone=us-central2-b"], "missing --name; see"),
        (["launch.sh", *HERE], "missing '-- MODULE'"),
        (["delete.sh", "--name=clip"], "missing --zone"),
        (["delete.sh", "--name"], "--name needs a value"),
        (["delete.sh", "--name=", "--zone=us-central2-b"], "--name is empty"),
        (["delete.sh", *HERE, "--force"], "unknown argument --force"),
        (["delete.sh", "clip; ls", *HERE], "unknown argument 'clip; ls'"),
        (["delete.sh", "--name=Clip", HERE[1]], "--name=Clip is no TPU name"),
        (["delete.sh", "--name=clip-", HERE[1]], "no TPU name"),
        (["delete.sh", "--name=a b", HERE[1]], "--name='a b' is no TPU name"),
        (["delete.sh", f"--name={'a' * 64}", HERE[1]], "no TPU name"),
        (["delete.sh", "--name=clip", "--zone=us-central2"], "--zone=us-central2 is no zone"),
        (["delete.sh", *HERE, "--project=$(id)"], "--project='$(id)' is no project id"),
        (["create.sh", *HERE, "--type=tpu"], "--type=tpu is no accelerator type"),
        (["create.sh", *HERE, "--type=v9-8"], "no software version is known for --type=v9-8"),
        (["create.sh", *HERE, "--type=v4-8", "--version=a b"], "'a b' is no name of a software"),
        (["setup.sh", *HERE, "--python=3.10"], "--python=3.10 is not 3.11 or later"),
        (["setup.sh", *HERE, "--dir=~/jaxlab"], "give a path relative to the home directory"),
        (["setup.sh", *HERE, "--dir=/"], "--dir=/ is no directory for a checkout"),
        (["setup.sh", *HERE, "--dir=../x"], "--dir=../x is no directory"),
        (["launch.sh", *HERE, "--", "rm", "-rf", "x"], "rm is no experiment"),
        (["launch.sh", *HERE, "--", "experiments.x;id"], "'experiments.x;id' is no experiment"),
        (["launch.sh", *HERE, "--", "experiments.a.b"], "there is no experiments/a/b.py"),
        (["launch.sh", *HERE, "--env=A", "--", TRAIN], "--env=A is not KEY=VALUE"),
        (["launch.sh", *HERE, "--env=A b=1", "--", TRAIN], "--env='A b=1' is not KEY=VALUE"),
    ],
)
def test_wrong_command_lines_say_what_is_wrong_and_do_nothing(call, logged, arguments, message):
    result = call(*arguments)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith(f"{arguments[0]}: ") and result.stderr.count("\n") == 1
    assert message in result.stderr
    assert logged() == []


def test_without_gcloud_only_dry_runs_work(call, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "basename", "dirname", "cat"):
        (tools / tool).symlink_to(shutil.which(tool))
    result = call("delete.sh", *HERE, PATH=str(tools))
    assert result.returncode == 2 and "gcloud is not in PATH" in result.stderr
    assert call("delete.sh", *HERE, "--dry-run", PATH=str(tools)).returncode == 0
