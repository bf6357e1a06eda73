"""Which binary does devcluster use, and when does it build one anew?"""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from devcluster import ToolError, binaries, recipes
from devcluster.recipes import BINARIES, Family

GO_MOD = "module example.test/tools\n\ngo 1.26.0\n\nrequire example.test/thing v1.2.3\n"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of Go modules with one module in it, ``thing``."""
    monkeypatch.setattr(recipes, "MODULES", tmp_path)
    folder = tmp_path / "thing"
    folder.mkdir()
    (folder / "go.mod").write_text(GO_MOD)
    (folder / "go.sum").write_text("example.test/thing v1.2.3 h1:x=\n")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    return tmp_path / "cache" / "berth" / "tools"


def thing(version_stamp: str = "v{version}") -> Family:
    return Family("thing", "example.test/thing", {"thing": "example.test/thing/cmd"}, {"main.v": version_stamp})


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_version_is_the_one_that_go_mod_requires(module: Path) -> None:
    assert thing().version == "1.2.3"
    assert "-ldflags=-s -w -X main.v=v1.2.3" in thing().build_arguments("thing")


def test_the_key_stays_while_nothing_that_is_built_changes(module: Path) -> None:
    assert thing().key() == thing().key()
    assert thing().key().startswith("thing-")


@pytest.mark.parametrize("name", ["go.mod", "go.sum"])
def test_the_key_changes_with_the_module(module: Path, name: str) -> None:
    before = thing().key()
    path = module / name
    path.write_text(path.read_text() + "// more\n")
    assert thing().key() != before


def test_the_key_changes_with_the_build_flags(module: Path) -> None:
    assert thing().key() != thing("v{version}-patched").key()


def test_a_module_that_requires_no_version_is_named(module: Path) -> None:
    (module / "go.mod").write_text("module example.test/tools\n")
    with pytest.raises(ToolError, match=r"thing/go.mod requires no version of example.test/thing: add 'require"):
        thing().key()


def test_a_missing_module_says_how_to_install(module: Path) -> None:
    (module / "go.sum").unlink()
    with pytest.raises(ToolError, match=r"go.sum not found: .*pip install -e tools"):
        thing().key()


def test_the_real_modules_pin_what_we_say_we_use() -> None:
    pinned = {name: BINARIES[name].version for name in ("kube-apiserver", "etcd", "helm", "kwok", "kubeconform")}
    assert pinned == {
        "kube-apiserver": "1.36.3", "etcd": "3.6.5", "helm": "4.3.1", "kwok": "0.8.0", "kubeconform": "0.8.0",
    }  # fmt: skip
    assert "-X k8s.io/component-base/version.gitMinor=36" in " ".join(
        BINARIES["kube-apiserver"].build_arguments("kube-apiserver")
    )


def test_a_cached_binary_is_used_as_it_is(cache: Path) -> None:
    cached = executable(cache / BINARIES["kwok"].key() / "kwok")
    assert binaries.ensure(["kwok"]) == {"kwok": cached}


def test_kubebuilder_assets_come_before_the_cache(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable(cache / BINARIES["etcd"].key() / "etcd")
    assets = {name: executable(tmp_path / "assets" / name) for name in ("etcd", "kube-apiserver", "kubectl")}
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path / "assets"))
    assert binaries.ensure(assets) == assets


def test_what_kubebuilder_assets_lack_comes_from_the_cache(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = executable(cache / BINARIES["kubectl"].key() / "kubectl")
    (tmp_path / "assets").mkdir()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path / "assets"))
    assert binaries.locate("kubectl") == cached
    assert binaries.locate("etcd") is None


def test_kubebuilder_assets_are_not_asked_for_what_setup_envtest_never_puts_there(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable(tmp_path / "assets" / "helm")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path / "assets"))
    assert binaries.locate("helm") is None


def test_without_go_one_line_says_what_to_do(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError) as refused:
        binaries.ensure(["etcd"])
    assert str(refused.value) == (
        "etcd must be built, and no 'go' is on PATH: install Go 1.26 or newer, "
        "or set KUBEBUILDER_ASSETS to a folder that holds it"
    )


def test_an_unknown_tool_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ToolError, match=r"unknown tool docker: expected one of etcd, kube-apiserver"):
        binaries.ensure(["docker"])


@pytest.mark.skipif(shutil.which("go") is None, reason="builds a Go program")
def test_two_processes_at_once_build_once_and_a_broken_program_is_shown(module: Path, cache: Path) -> None:
    (module / "go.mod").write_text(GO_MOD + "\nreplace example.test/thing => ./thing\n")
    (module / "thing" / "cmd").mkdir(parents=True)
    (module / "thing" / "go.mod").write_text("module example.test/thing\n\ngo 1.26.0\n")
    program = module / "thing" / "cmd" / "main.go"
    program.write_text("package main\n\nfunc main() { missing() }\n")
    script = (
        "import sys; from pathlib import Path; from devcluster import binaries, recipes\n"
        f"recipes.MODULES = Path({str(module.parent)!r})\n"
        "family = recipes.Family('thing', 'example.test/thing', {'thing': 'example.test/thing/cmd'})\n"
        "binaries.BINARIES = {'thing': family}\n"
        "try: print(binaries.ensure(['thing'])['thing'])\n"
        "except recipes.ToolError as error: sys.exit(str(error))\n"
    )
    broken = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert broken.returncode == 1
    assert "go build of thing 1.2.3" in broken.stderr
    assert "undefined: missing" in broken.stderr

    program.write_text("package main\n\nfunc main() {}\n")
    both = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    results = [each.communicate() for each in both]
    assert [each.returncode for each in both] == [0, 0], results
    assert sum(errors.count("building thing 1.2.3 done") for _, errors in results) == 1
    (path,) = {output.strip() for output, _ in results}
    subprocess.run([path], check=True)
    assert sorted(left.name for left in Path(path).parent.iterdir()) == [".lock", "thing"]
