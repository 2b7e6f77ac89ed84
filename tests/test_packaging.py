"""The Docker image, without Docker: its files, its requirements, and another user."""

import ast
import os
import re
import signal
import subprocess
import venv
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import config
from web.serving import INVALID_SETTINGS

from .conftest import KEY
from .fronts import shipped
from .image import DOCKERFILE, ROOT, copy_image
from .scripted import ScriptedServer, fetch, free_port, png, wait_until

# Allowed to read everything, since Python and this folder may lie below /root, but to write only
# what it owns.
OTHER_USER = 10001
AS_OTHER_USER = (
    f"setpriv --reuid={OTHER_USER} --regid={OTHER_USER} --clear-groups"
    " --inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search"
).split()


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Path]:
    """The image's working directory, read-only."""
    copy_image(folder := tmp_path / "app")
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(path.stat().st_mode & 0o555)
    yield folder
    for path in paths:
        path.chmod(0o755)


def read_requirements(name: str) -> list[Requirement]:
    lines = (ROOT / name).read_text("utf-8").splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def requirements(*extras: str) -> set[str]:
    """Return the distributions that the requirements, and those of extras, need in all."""
    files = ["requirements.txt", *(f"requirements-{extra}.txt" for extra in extras)]
    wanted = [requirement for name in files for requirement in read_requirements(name)]
    names: set[str] = set()
    while wanted:
        requirement = wanted.pop()
        if (name := canonicalize_name(requirement.name)) not in names:
            names.add(name)
            extras_of_it = requirement.extras or {""}
            for one in map(Requirement, distribution(name).requires or []):
                if not one.marker or any(one.marker.evaluate({"extra": e}) for e in extras_of_it):
                    wanted.append(one)
    return names


def make_environment(folder: Path) -> str:
    """Create a virtual environment with requirements.txt alone; return its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in requirements():
        installed = distribution(name)
        # Linked, not installed: tests use no network.
        for part in {Path(file).parts[0] for file in installed.files or []} - {"..", "__pycache__"}:
            (packages / part).symlink_to(str(installed.locate_file(part)))
    return str(folder / "bin" / "python")


@pytest.fixture
def image_url(image: Path, backend: ScriptedServer, tmp_path: Path) -> Iterator[str]:
    """The URL of the image's command, run from its working directory."""
    assert DOCKERFILE.splitlines()[-1] == 'CMD ["gunicorn"]'
    (in_image,) = re.findall(r"(?m)^ENV (.*PYTHONDONTWRITEBYTECODE.*)$", DOCKERFILE)
    (cache := tmp_path / "cache").mkdir()
    other_user: list[str] = []
    if os.geteuid() == 0:
        other_user = AS_OTHER_USER
        os.chown(cache, OTHER_USER, OTHER_USER)
    url = f"http://127.0.0.1:{(port := free_port())}"
    image.chmod(0o755)
    # As it is mounted; Docker's own reading would keep the quotes, or expand the dollar sign.
    (image / ".env").write_text(
        f"BACKEND_API_URLS='{backend.url}'\nPROXY_ACCESS_KEY='{KEY}'\nADMIN_TOKEN=a$b\n"
        "POLLINATIONS_ENABLED=false\nHOST=192.0.2.1\n"
    )
    image.chmod(0o555)
    environment = dict(pair.split("=") for pair in in_image.split())
    environment |= {"PATH": "/usr/bin:/bin", "HOST": "127.0.0.1", "WORKERS": "1"}
    environment |= {"PORT": str(port), "CACHE_DIR": str(cache)}
    command = [*other_user, make_environment(tmp_path / "venv"), "-m", "gunicorn"]
    log = tmp_path / "gunicorn.log"

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        with suppress(OSError):
            return fetch(f"{url}/status").status == 200
        return False

    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=image, env=environment, stdout=out, stderr=out)
    with process:
        try:
            wait_until(answers, what="gunicorn")
            yield url
        finally:
            process.send_signal(signal.SIGTERM)


def test_image_serves_as_another_user_on_a_read_only_tree(
    image_url: str, image: Path, backend: ScriptedServer
) -> None:
    before = set(image.rglob("*"))
    picture = f"{image_url}/prompt/x?key={KEY}"
    assert fetch(picture).body == png()
    assert fetch(picture).headers["Cache-Status"].endswith("; hit")
    for path in ("/", "/page/page.js", "/robots.txt"):
        assert fetch(image_url + path).status == 200
    card = fetch(f"{image_url}/prompt/x", headers={"Accept": "image/*"})
    assert (card.status, card.headers["Content-Type"]) == (401, "image/png")
    # The token in the mounted .env.
    assert fetch(f"{image_url}/cache", headers={"X-Admin-Token": "a$b"}).status == 200
    assert set(image.rglob("*")) == before


def test_unit_and_compose_leave_the_settings_to_dotenv() -> None:
    unit = shipped("prompt-image-proxy.service")
    set_by_unit = " ".join(re.findall(r"(?m)^Environment\w*=(.*)", unit))
    names = {"PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}
    assert set(re.findall(r"(\w+)=", set_by_unit)) == names
    check, hang_up = re.findall(r"(?m)^ExecReload=(.*)", unit)
    assert check.endswith("/.venv/bin/python -m commands check --settings")
    assert hang_up == "/bin/sh -c 'kill -s HUP \"$MAINPID\"'"
    assert f"\nRestartPreventExitStatus={INVALID_SETTINGS}\n" in unit
    compose = shipped("compose.yaml")
    assert not re.search(r"(?m)^ *env_file:", compose)
    assert re.search(r"source: \.\./\.env\n +target: /app/\.env\n +read_only: true", compose)


def test_backup_may_write_where_the_service_does() -> None:
    names = ("prompt-image-proxy.service", "prompt-image-proxy-backup.service")
    unit, backup = map(shipped, names)
    for line in ("User", "WorkingDirectory", "UMask"):
        assert re.findall(rf"(?m)^{line}=.*", backup) == re.findall(rf"(?m)^{line}=.*", unit)
    program, folder = re.findall(r"(?m)^ExecStart=(\S+) -m commands cache backup (\S+)$", backup)[0]
    assert program == "/opt/prompt-image-proxy/.venv/bin/python"
    # It takes the cache's locks: with a CACHE_DIR that only the service's unit admits, it fails.
    own, admitted = (
        re.findall(r"(?m)^StateDirectory=(.*)", text)[0].split() for text in (unit, backup)
    )
    assert {*own, folder.removeprefix("/var/lib/")} == {*admitted}
    assert all(re.search(r"CACHE_DIR[^\n]*\n?.*ReadWritePaths=", text) for text in (unit, backup))


def test_everything_that_requirements_need_is_pinned_as_tested() -> None:
    pinned = read_requirements("constraints.txt")
    versions = {str(canonicalize_name(one.name)): str(one.specifier) for one in pinned}
    for name in requirements("cluster", "formats", "metrics", "socks"):
        assert versions.get(name) == f"=={distribution(name).version}", f"{name}: make constraints"


def test_every_install_uses_the_constraints() -> None:
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    for path in [*documents, ROOT / "Dockerfile", ROOT / "Makefile"]:
        for options in re.findall(r"pip install (.*)-r ", path.read_text("utf-8")):
            assert options.endswith("-c constraints.txt "), path


def read_compose(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(shipped(name))
    return found


def test_both_compose_files_run_the_app_alike() -> None:
    alone = read_compose("compose.yaml")["services"]["app"]
    app, other = (read_compose("compose-cluster.yaml")["services"][f"app-{n}"] for n in (1, 2))
    assert {name for name in app if app[name] != other[name]} == {"volumes"}
    limits = ("stop_grace_period", "read_only", "tmpfs", "cap_drop", "security_opt", "restart")
    assert {name: app[name] for name in limits} == {name: alone[name] for name in limits}
    assert app["volumes"][1] == alone["volumes"][1]


def test_compose_mounts_the_cards_where_nginx_reads_them() -> None:
    (folder,) = re.findall(r"alias (\S+)/;", shipped("nginx.conf"))
    for name in ("compose.yaml", "compose-cluster.yaml"):
        assert f"../web/cards:{folder}:ro" in read_compose(name)["services"]["nginx"]["volumes"]


def test_compose_with_tls_puts_files_where_nginx_reads_them() -> None:
    alone, tls = (read_compose(name) for name in ("compose.yaml", "compose-tls.yaml"))
    places = {}
    for service in ("nginx", "certbot"):
        shared = alone["services"].get(service, {}).get("volumes", [])
        volumes = shared + tls["services"][service]["volumes"]
        places[service] = {volume.split(":")[1]: name_of(volume) for volume in volumes}
        named = {*filter(None, places[service].values())}
        assert named <= alone["volumes"].keys() | tls["volumes"].keys()
    for folder in ("/etc/letsencrypt", "/var/www/html"):
        assert places["nginx"][folder] == places["certbot"][folder]
    conf, tls_conf = map(shipped, ("nginx.conf", "nginx-tls.conf"))
    (included,) = re.findall(r"include (\S+/)\*\.conf;", conf)
    assert f"{included}tls.conf" in places["nginx"]
    (name,) = set(re.findall(r"ssl_certificate\w* /etc/letsencrypt/live/([\w-]+)/", tls_conf))
    comments = shipped("compose-tls.yaml")
    assert f"--cert-name {name} " in comments.replace("\n#", "")


def test_compose_file_of_a_cluster_refers_to_what_it_defines() -> None:
    compose = read_compose("compose-cluster.yaml")
    services = compose["services"]
    for service in services.values():
        assert set(service.get("secrets", ())) <= compose["secrets"].keys()
        needed = service.get("depends_on", {})
        assert set(needed) <= services.keys()
        for name in needed if isinstance(needed, dict) else ():
            assert "healthcheck" in services[name]
        volumes = [volume for volume in service.get("volumes", ()) if isinstance(volume, str)]
        assert {name for name in map(name_of, volumes) if name} <= compose["volumes"].keys()
    assert (ROOT / f"requirements-{services['app-1']['build']['args']['EXTRAS']}.txt").exists()


def name_of(volume: str) -> str | None:
    source = volume.partition(":")[0]
    return None if source.startswith(".") else source


def test_compose_file_of_a_cluster_makes_valid_settings(tmp_path: Path) -> None:
    compose = read_compose("compose-cluster.yaml")
    text = shipped("compose-cluster.yaml")
    (make,) = re.findall(r"(?ms)^#   mkdir -m 750 deploy/secrets .*?(?=^#   cd \.\./\.\.)", text)
    script = re.sub(r"(?m)^#   ", "", make)
    (tmp_path / "deploy").mkdir()
    subprocess.run(["sh", "-e", "-c", script], cwd=tmp_path, check=True)
    values = compose["services"]["app-1"]["environment"]
    secrets = {f"/run/secrets/{name}": where["file"] for name, where in compose["secrets"].items()}
    for name in (name for name in values if name.endswith("_FILE")):
        values[name] = str(tmp_path / "deploy" / secrets[values[name]])
    least = {"BACKEND_API_URLS": "https://backend", "PROXY_ACCESS_KEY": KEY}
    settings = config.parse({**least, **values, "CACHE_DIR": str(tmp_path)})
    assert settings.storage
    assert settings.database_url
    database = compose["services"]["database"]["environment"]
    assert f"postgresql://{database['POSTGRES_USER']}:" in settings.database_url


def test_nginx_of_a_cluster_asks_both_apps() -> None:
    script = read_compose("compose-cluster.yaml")["services"]["nginx"]["command"][2]
    (edit,) = re.findall(r"sed '(.*)'", script)
    before = shipped("nginx.conf")
    after = subprocess.check_output(["sed", edit], input=before, text=True)
    changed = [b for a, b in zip(before.split("\n"), after.split("\n"), strict=True) if a != b]
    both = "server app-1:8080 max_fails=0; server app-2:8080 max_fails=0;"
    assert [line.strip() for line in changed] == [both]


def test_image_contains_every_module_that_it_imports(image: Path) -> None:
    for path in image.rglob("*.py"):
        # Imports inside functions too, which a start does not run.
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)]
            for stem in (name.replace(".", "/") for name in names):
                for file in (f"{stem}.py", f"{stem}/__init__.py"):
                    assert (image / file).exists() or not (ROOT / file).exists(), (path, file)


def test_image_contains_no_file_that_dockerignore_excludes(image: Path) -> None:
    ignored = (ROOT / ".dockerignore").read_text("utf-8").split()
    assert {".env", ".git", "tests"} <= set(ignored)
    assert not [pattern for pattern in ignored if list(image.glob(pattern))]
