"""Find a Python that is not installed here among Debian's packages, for this machine or, in qemu, for arm64.

``python scripts/debian_python.py aarch64 3.14`` unpacks it into ``build/debian/``, installs nothing, and prints a command that runs
it. It has no pip and no ensurepip: packages are put on its PYTHONPATH by another Python's ``pip install --target``.
"""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1] / "build" / "debian"
RELEASES = {"3.11": "bookworm", "3.13": "trixie", "3.14": "sid"}  # those that have it
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"


def mirror() -> str:
    """Return the address of Debian's packages that this machine is set to."""
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Label: Debian"]
    addresses = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split()
    if not addresses:
        raise OSError("this machine's apt has no packages of Debian's (after apt-get update)")
    return addresses[0]


def unpack(architecture: str, version: str, home: Path) -> None:
    """Fetch a Python and what it needs, by apt with lists and a state of its own, and unpack them below ``home/root``."""
    for folder in ("lists/partial", "cache/archives/partial", "root"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    (home / "status").touch()
    source = f"deb [arch={architecture} signed-by={KEYS}] {mirror()} {RELEASES[version]} main\n"
    (home / "sources.list").write_text(source)
    settings = {
        "APT::Architecture": architecture,
        "APT::Architectures::": architecture,
        "APT::Sandbox::User": "",
        "Dir::Etc::SourceList": home / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": home / "lists",
        "Dir::State::Status": home / "status",
        "Dir::Cache": home / "cache",
        "Debug::NoLocking": "true",
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in settings.items())]
    packages = [f"python{version}", "libstdc++6"]  # the kernels need the latter
    for command in (["update"], ["install", "--yes", "--download-only", "--no-install-recommends", *packages]):
        subprocess.run([*apt, *command], check=True, capture_output=True, timeout=300)
    for package in sorted((home / "cache/archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, home / "root"], check=True, capture_output=True)
    for name in ("lib", "lib64"):  # which another package of Debian's would link
        if not (home / "root" / name).exists() and (home / "root/usr" / name).exists():
            (home / "root" / name).symlink_to(f"usr/{name}")


def launch(machine: str, version: str, root: Path) -> str | None:
    """Return the line of a shell script that runs it, or None where this machine cannot."""
    python = f"'{root}/usr/bin/python{version}'"
    if machine != platform.machine():
        qemu = shutil.which(f"qemu-{machine}") or shutil.which(f"qemu-{machine}-static")
        return qemu and f"{qemu} -L '{root}' {python}"
    loader, libraries = (
        next(root.glob("lib*/ld-linux-*")),
        f"'{root}/lib/{machine}-linux-gnu:{root}/usr/lib/{machine}-linux-gnu'",
    )
    return f"'{loader}' --library-path {libraries} --argv0 {python} {python}"


def launcher(machine: str, version: str) -> tuple[str | None, str]:
    """Return a command that runs this Python for this machine, fetched if need be; or None and the reason."""
    home = ROOT / f"{machine}-{version}"
    script = home / f"python{version}"
    if script.exists():
        return str(script), ""
    if version not in RELEASES or machine not in ARCHITECTURES or not shutil.which("apt-get"):
        return None, f"this Python is not installed here, and not among Debian's packages for {machine}"
    try:
        unpack(ARCHITECTURES[machine], version, home)
    except (subprocess.SubprocessError, OSError) as error:
        said = getattr(error, "stderr", None) or str(error).encode()
        return None, f"Debian's packages cannot be fetched here: {said.decode(errors='replace').strip()[-200:]}"
    line = launch(machine, version, home / "root")
    if line is None:
        return None, f"there is no qemu-{machine} (on Debian: apt-get install qemu-user)"
    script.write_text(f'#!/bin/sh\nexec {line} "$@"\n')
    script.chmod(0o755)
    asked = subprocess.run(
        [script, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True
    )
    if asked.stdout.strip() != version:
        script.unlink()
        return None, f"Debian's Python does not run here: {(asked.stdout + asked.stderr).strip()[-200:]}"
    return str(script), ""


if __name__ == "__main__":
    command, reason = launcher(*sys.argv[1:])
    print(command or reason)
    sys.exit(command is None)
