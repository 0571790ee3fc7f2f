"""The hardware probe: real child processes, fake drivers, and a fake Raspberry Pi."""

from __future__ import annotations

import importlib.util
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from blackroad.capabilities import Capabilities, Device, decode, encode
from blackroad.discovery import machine, probe, probe_find
from blackroad.discovery.machine import Host
from blackroad.discovery.probe import Findings, Probe, probe_now, quick, start_probe
from blackroad.discovery.probe_find import advice, driver_files, find
from blackroad.kernels.opencl import CHOICE_VARIABLE

pytestmark = pytest.mark.edge

HAS_POCL = importlib.util.find_spec("pocl_binary_distribution") is not None

PI5: Mapping[str, str] = {
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "proc/meminfo": "MemTotal:        8245952 kB\nMemFree: 1 kB\n",
    "proc/self/cgroup": "0::/system.slice/blackroad-node.service\n",
    "sys/fs/cgroup/system.slice/blackroad-node.service/memory.max": "max\n",
    "sys/devices/system/cpu/online": "0-3\n",
    "etc/os-release": 'ID=debian\nVERSION_ID="13"\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n',
    "dev/dri/renderD128": "",
    "dev/dri/card0": "",
    "sys/class/thermal/thermal_zone0/temp": "61250\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
    "lib/ld-musl-aarch64.so.1": "",
}


def tree(root: Path, files: Mapping[str, str], **changes: Any) -> Host:
    """Write a small file system and return the host that lives in it."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    fields: dict[str, Any] = {"machine": "arm64", "page_bytes": 16_384, "environ": {}}
    return Host(root=root, **(fields | changes))


# --- what files tell ----------------------------------------------------------------------------


def test_a_pi_5_is_described_from_its_files(tmp_path: Path) -> None:
    host = tree(tmp_path, PI5, environ={"PATH": "/usr/bin"})
    tool = tmp_path / "usr/bin/ffmpeg"
    tool.parent.mkdir(parents=True)
    tool.write_text("")
    tool.chmod(0o755)
    (tmp_path / "usr/bin/git").write_text("not executable")
    caps = quick("attic", {"room": "attic"}, (), host)
    assert (caps.name, caps.arch, caps.page_bytes) == ("attic", "aarch64", 16_384)
    assert caps.model == "Raspberry Pi 5 Model B Rev 1.0"
    assert caps.memory_bytes == 8_245_952 * 1024
    assert (caps.cores, caps.os, caps.libc) == (4, "Debian GNU/Linux 13 (trixie)", "musl")
    assert caps.programs == ("ffmpeg",)
    assert caps.labels == {"room": "attic"}
    assert decode(encode(caps)) == caps


def test_this_machine_is_described() -> None:
    caps = quick()
    assert caps.cores >= 1
    assert caps.memory_bytes > 2**20
    assert caps.python == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert decode(encode(caps)) == caps


def test_an_empty_file_system_is_described_too(tmp_path: Path) -> None:
    caps = quick(host=tree(tmp_path, {}))
    assert (caps.cores, caps.memory_bytes, caps.model) == (1, 0, "")
    assert decode(encode(caps)) == caps


@pytest.mark.parametrize(
    ("files", "memory_gib", "cores"),
    [
        ({}, 16, 8),
        ({"sys/fs/cgroup/a/b/memory.max": str(2 * 2**30)}, 2, 8),
        ({"sys/fs/cgroup/a/memory.high": str(3 * 2**30),
          "sys/fs/cgroup/a/b/memory.max": str(4 * 2**30)}, 3, 8),
        ({"sys/fs/cgroup/memory.max": str(5 * 2**30)}, 5, 8),
        ({"sys/fs/cgroup/a/memory.max": "nonsense"}, 16, 8),
        ({"sys/fs/cgroup/a/b/cpu.max": "250000 100000"}, 16, 2),
        ({"sys/fs/cgroup/a/b/cpu.max": "50000 100000"}, 16, 1),
        ({"sys/fs/cgroup/a/b/cpu.max": "max 100000"}, 16, 8),
        ({"proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/x\n",
          "sys/fs/cgroup/memory/x/memory.limit_in_bytes": str(2**30),
          "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "300000",
          "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000"}, 1, 3),
        ({"proc/self/cgroup": "4:memory:/x\n",
          "sys/fs/cgroup/memory/x/memory.limit_in_bytes": str(2**63 - 4096),
          "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "-1"}, 16, 8),
        ({"proc/self/cgroup": "0::/../../outside\n"}, 16, 8),
    ],
)  # fmt: skip
def test_cgroup_limits_are_honoured(
    tmp_path: Path, files: dict[str, str], memory_gib: int, cores: int
) -> None:
    base = {
        "proc/meminfo": f"MemTotal: {16 * 2**20} kB\n",
        "proc/self/cgroup": "0::/a/b\n",
        "sys/devices/system/cpu/online": "0-5,8,9\n",
    }
    host = tree(tmp_path, base | files)
    assert machine.memory_bytes(host) == memory_gib * 2**30
    assert machine.cores(host) == cores


def test_sensors_of_a_pi(tmp_path: Path) -> None:
    host = tree(tmp_path, PI5)
    assert machine.sensors(host) == {
        "temperature_c": 61.2,
        "throttled": True,
        "under_voltage": True,
    }
    (tmp_path / "sys/devices/platform/soc/soc:firmware/get_throttled").write_text("50000\n")
    assert machine.sensors(host)["throttled"] is False


def test_sensors_of_a_laptop(tmp_path: Path) -> None:
    power = "sys/class/power_supply"
    files = {
        "sys/class/thermal/thermal_zone0/temp": "-274000",
        "sys/class/thermal/thermal_zone1/temp": "47000",
        "sys/class/thermal/cooling_device0/type": "cpufreq-cpu0",
        "sys/class/thermal/cooling_device0/cur_state": "2",
        "sys/class/thermal/cooling_device1/type": "fan",
        "sys/class/thermal/cooling_device1/cur_state": "9",
        f"{power}/BAT0/type": "Battery",
        f"{power}/BAT0/capacity": "83",
        f"{power}/BAT0/status": "Discharging",
        f"{power}/AC/type": "Mains",
        f"{power}/mouse/type": "Battery",
        f"{power}/mouse/scope": "Device",
        f"{power}/mouse/capacity": "4",
    }
    assert machine.sensors(tree(tmp_path, files)) == {
        "temperature_c": 47.0,
        "throttled": True,
        "battery_percent": 83.0,
        "on_battery": True,
    }


def test_a_machine_without_sensors_says_nothing(tmp_path: Path) -> None:
    assert machine.sensors(tree(tmp_path, {})) == {}


def test_caches_move_where_systemd_allows_writing(tmp_path: Path) -> None:
    environ = {"CACHE_DIRECTORY": "/var/cache/blackroad:/x", "POCL_CACHE_DIR": "/mine"}
    assert machine.cache_environment(Host(root=tmp_path, environ=environ)) == {
        "XDG_CACHE_HOME": "/var/cache/blackroad",
        "MESA_SHADER_CACHE_DIR": "/var/cache/blackroad",
    }
    assert machine.cache_environment(Host(root=tmp_path, environ={})) == {}


# --- advice -------------------------------------------------------------------------------------

PI_GPU = Device("gpu", "V3D 7.1", "opencl", 2**30, 1, False, False, "rusticl", "25", 0)


def driver(icd: str | None, **changes: Any) -> probe_find.Driver:
    return probe_find.Driver(Path(icd) if icd else None, False, **changes)


@pytest.mark.parametrize(
    ("release", "icds", "says"),
    [
        ("ID=debian\nVERSION_ID=13", [None], "`sudo apt install mesa-opencl-icd`"),
        ("ID=debian\nVERSION_ID=12", [None], "`sudo apt install pocl-opencl-icd`"),
        ("ID=raspbian\nVERSION_ID=13", [None], "mesa-opencl-icd"),
        ("ID=ubuntu\nVERSION_ID=24.04", [None], "pocl-opencl-icd"),
        ("ID=fedora\nVERSION_ID=43", [None], "PoCL runs OpenCL on any processor"),
        ("ID=debian\nVERSION_ID=13", ["/etc/OpenCL/vendors/rusticl.icd"], "no v3d device"),
        ("ID=debian\nVERSION_ID=13", ["/etc/OpenCL/vendors/pocl.icd"], "mesa-opencl-icd"),
        ("", [None], "PoCL runs OpenCL on any processor"),
    ],
)
def test_a_pi_without_a_gpu_driver_is_told_which_package(
    tmp_path: Path, release: str, icds: list[str | None], says: str
) -> None:
    host = tree(tmp_path, {**PI5, "etc/os-release": release})
    [note] = advice(host, [driver(icd) for icd in icds], [])
    assert says in note
    assert advice(host, [driver("rusticl.icd")], [PI_GPU]) == []


def test_other_machines_are_told_of_a_driver_for_the_processor(tmp_path: Path) -> None:
    host = tree(tmp_path, {"etc/os-release": "ID=linuxmint\nID_LIKE=ubuntu"})
    [note] = advice(host, [driver(None)], [])
    assert note.endswith("`sudo apt install pocl-opencl-icd`")
    software = msgspec.structs.replace(PI_GPU, kind="cpu", software=True)
    assert advice(host, [driver(None)], [software]) == []
    broken = msgspec.structs.replace(software, problem="hangs")
    assert len(advice(host, [driver(None)], [broken])) == 1


def test_a_closed_render_node_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = tree(tmp_path, PI5)
    # Root may open every file, whatever its mode.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "usermod -aG render" in advice(host, [driver("rusticl.icd")], [])[0]


# --- drivers that work and drivers that do not --------------------------------------------------

# Stands in for pyopencl: the driver file says, word by word, how its devices behave.
FAKE_PYOPENCL = """
import os
import signal
import numpy as np

class Error(Exception):
    pass

class device_type:
    CPU, GPU = 2, 4

class mem_flags:
    READ_ONLY, COPY_HOST_PTR, READ_WRITE, WRITE_ONLY = 1, 2, 4, 8

class Device:
    vendor, vendor_id, driver_version, extensions = "Fake", 4660, "1.0", "cl_khr_fp64 cl_x"
    type, global_mem_size, max_compute_units = 4, 2**30, 8
    def __init__(self, name):
        self.name = name

class Platform:
    def __init__(self, name, words):
        self.name, self.words = name, words
    def get_devices(self):
        if "none" in self.words:
            raise Error("CL_DEVICE_NOT_FOUND")
        return [Device(word) for word in self.words]

def get_platforms():
    path = os.environ.get("OCL_ICD_VENDORS", "")
    try:
        words = open(path).read().split()
    except OSError:
        words = []
    if "abort" in words:
        os.kill(os.getpid(), signal.SIGABRT)
    if "hang" in words:
        if "FAKE_READY" in os.environ:
            open(os.environ["FAKE_READY"], "w").write(str(os.getpid()))
        signal.pause()
    if "noise" in words:
        words.remove("noise")
        print("driver says hello", flush=True)
        os.write(1, b"and so does its C part\\n")
    if not words or words[0].startswith("lib"):
        raise Error("PLATFORM_NOT_FOUND_KHR")
    return [Platform(os.path.basename(path), words)]

class Context:
    def __init__(self, devices):
        self.how = devices[0].name

class CommandQueue:
    def __init__(self, context):
        self.how = context.how
    def finish(self):
        pass

class Buffer:
    def __init__(self, context, flags, size=0, hostbuf=None):
        self.array = None if hostbuf is None else hostbuf.copy()

class Program:
    def __init__(self, context, source):
        self.how = context.how
    def build(self):
        if self.how == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.how == "nobuild":
            raise Error("BUILD_PROGRAM_FAILURE: no compiler\\nmore lines")
        return self
    def check(self, queue, shape, local, given, whole, real):
        x = given.array
        whole.array = x * 3 + np.arange(len(x), dtype=np.int32)
        real.array = x.astype(np.float32) * np.float32(0.5) + np.float32(1.25)
        if self.how == "wrong":
            real.array[5] += 1

class Kernel:
    def __init__(self, program, name):
        pass
    def set_args(self, *args):
        pass

def enqueue_copy(queue, target, source):
    target[:] = source.array

def enqueue_nd_range_kernel(queue, kernel, shape, local):
    pass
"""


@pytest.fixture
def fakes(tmp_path: Path) -> Path:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/pyopencl.py").write_text(FAKE_PYOPENCL)
    (tmp_path / "vendors").mkdir()
    return tmp_path


def host_with(fakes: Path, **drivers: str) -> Host:
    for name, words in drivers.items():
        (fakes / f"vendors/{name}.icd").write_text(words)
    environ = {
        **os.environ,
        "PYTHONPATH": str(fakes / "modules"),
        "OCL_ICD_VENDORS": str(fakes / "vendors"),
    }
    return Host(environ=environ)


def problems(findings: Findings) -> dict[str, str]:
    return {device.name: device.problem for device in findings.capabilities.devices}


def test_one_bad_driver_does_not_hide_the_others(fakes: Path) -> None:
    host = host_with(fakes, a="abort", b="good wrong", c="segfault fine nobuild", d="none")
    findings = find(quick("attic"), host, scratch=fakes)
    found = problems(findings)
    assert found["good"] == found["fine"] == ""
    assert found["wrong"] == "computes wrong numbers (1 of 8192)"
    assert found["nobuild"] == "BUILD_PROGRAM_FAILURE: no compiler"
    assert found["segfault"].startswith("crashed with SIGSEGV")
    assert found["a"].startswith("crashed with SIGABRT")
    assert [device.name for device in findings.capabilities.gpus()] == ["good", "fine"]
    numbers = [device.name for device in findings.capabilities.devices]
    speeds = {key for key in findings.capabilities.speeds if key.startswith("opencl:")}
    assert speeds == {f"opencl:{numbers.index('good')}", f"opencl:{numbers.index('fine')}"}
    assert decode(encode(findings.capabilities)) == findings.capabilities
    # Tasks get a directory without the driver that ends whoever loads it.
    folder = Path(findings.environment["OCL_ICD_VENDORS"])
    assert sorted(link.resolve().name for link in folder.iterdir()) == ["b.icd", "c.icd"]


def test_a_driver_that_hangs_is_given_up(fakes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_find, "DRIVER_MS", 400)
    findings = find(quick("attic"), host_with(fakes, stuck="hang"))
    assert problems(findings)["stuck"] == "did not answer within 0.4 s"
    assert findings.environment["OCL_ICD_VENDORS"] != str(fakes / "vendors")


def test_where_opencl_is_off_no_driver_is_loaded(fakes: Path) -> None:
    host = host_with(fakes, good="good", hangs="hang")
    ready = fakes / "ready"
    environ = {**host.environ, probe_find.CHOICE_VARIABLE: "off", "FAKE_READY": str(ready)}
    findings = find(quick("attic"), Host(environ=environ))
    assert CHOICE_VARIABLE == probe_find.CHOICE_VARIABLE
    assert not [one for one in findings.capabilities.devices if one.backend == "opencl"]
    assert not [note for note in findings.capabilities.notes if "OpenCL" in note]
    assert findings.capabilities.speeds["python"] > 0
    assert not ready.exists()


def test_without_a_directory_of_ours_the_owner_is_told(fakes: Path) -> None:
    findings = find(quick("attic"), host_with(fakes, a="abort", b="good", c="good"))
    assert "OCL_ICD_VENDORS" not in findings.environment
    assert any(str(fakes / "vendors/a.icd") in note for note in findings.capabilities.notes)


def test_what_drivers_print_is_no_answer(fakes: Path) -> None:
    assert problems(find(quick("attic"), host_with(fakes, a="noise good"))) == {"good": ""}


def test_no_time_left_is_said_not_hidden(fakes: Path) -> None:
    findings = find(quick("attic"), host_with(fakes, a="good"), limit_ms=0)
    assert problems(findings)["a"] == "was not tried: no time was left"


def test_without_pyopencl_the_probe_works(fakes: Path) -> None:
    (fakes / "modules/pyopencl.py").write_text("raise ImportError('none here')")
    findings = find(quick("attic"), host_with(fakes, a="good"))
    assert findings.capabilities.devices == ()
    assert "`pip install pyopencl`" in findings.capabilities.notes[0]
    assert findings.capabilities.speeds["python"] > 0


def test_a_numpy_that_crashes_costs_only_its_speed(fakes: Path) -> None:
    (fakes / "modules/numpy.py").write_text("import os\nos.kill(os.getpid(), 4)")
    findings = find(quick("attic"), host_with(fakes))
    assert set(findings.capabilities.speeds) == {"python"}
    assert "NumPy does not run here: crashed with SIGILL" in findings.capabilities.notes


def test_a_pi_switches_its_gpu_driver_on_for_probe_and_tasks(fakes: Path) -> None:
    host = host_with(fakes)
    pi = tree(fakes / "root", {**PI5, "etc/OpenCL/vendors/rusticl.icd": "v3d"},
              environ={**host.environ, "OCL_ICD_VENDORS": ""})  # fmt: skip
    findings = find(quick("attic", host=pi), pi)
    assert findings.environment == {"RUSTICL_ENABLE": "v3d"}
    assert problems(findings) == {"v3d": ""}
    chosen = Host(root=pi.root, environ={**pi.environ, "RUSTICL_ENABLE": "llvmpipe"})
    assert find(quick("attic", host=chosen), chosen).environment == {}


FAKE_PYNVML = """
import types
class NVMLError(Exception): pass
def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlSystemGetDriverVersion(): return b"570.1"
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(index):
    if index == 1: raise NVMLError("GPU is lost")
    return index
def nvmlDeviceGetName(handle): return "RTX"
def nvmlDeviceGetMemoryInfo(handle): return types.SimpleNamespace(total=12 * 2**30)
"""


@pytest.mark.parametrize("signed", [True, False])
def test_nvidia_cards_are_asked_for_where_a_driver_is_loaded(fakes: Path, signed: bool) -> None:
    (fakes / "modules/pynvml.py").write_text(FAKE_PYNVML)
    (fakes / "modules/pyopencl.py").write_text("raise ImportError")
    files = {"proc/driver/nvidia/version": "NVRM"} if signed else {}
    host = tree(fakes / "root", files, environ=host_with(fakes).environ)
    caps = find(quick("tower", host=host), host).capabilities
    cards = [(card.name, card.backend, card.memory_bytes, card.problem) for card in caps.devices]
    assert cards == [
        ("RTX", "cuda", 12 * 2**30, ""),
        ("NVIDIA card 1", "cuda", 0, "GPU is lost"),
    ] * signed  # fmt: skip
    assert len(caps.gpus()) == signed


def test_driver_files_follow_the_loaders(tmp_path: Path) -> None:
    vendors = tmp_path / "vendors"
    vendors.mkdir()
    one = vendors / "one.icd"
    one.write_text("libone.so")
    as_file = Host(environ={"OCL_ICD_VENDORS": str(one)})
    assert driver_files(as_file) == [(one, False)]
    as_folder = Host(environ={"OCL_ICD_VENDORS": str(vendors)})
    assert [pair for pair in driver_files(as_folder) if not pair[1]] == [(one, False)]
    gone = Host(environ={"OCL_ICD_VENDORS": str(vendors / "gone.icd")})
    assert driver_files(gone) == []
    system = tree(tmp_path / "root", {"etc/OpenCL/vendors/mesa.icd": "libMesaOpenCL.so.1"})
    assert driver_files(system) == [(tmp_path / "root/etc/OpenCL/vendors/mesa.icd", False)]


@pytest.mark.skipif(not HAS_POCL, reason="PoCL from pip is not installed")
def test_pocl_from_pip_is_found_tried_and_called_software() -> None:
    assert [bundled for _, bundled in driver_files(Host(environ={}))].count(True) == 1
    findings = probe_now(env={**os.environ, "OCL_ICD_VENDORS": ""})
    caps = findings.capabilities
    pocl = [device for device in caps.devices if device.platform.startswith("Portable")]
    assert [(device.kind, device.software, device.problem) for device in pocl] == [
        ("cpu", True, "")
    ]
    assert pocl[0] not in caps.gpus()
    assert caps.speeds["python"] > 0
    assert caps.speeds["numpy"] > 0
    assert any(key.startswith("opencl:") for key in caps.speeds)
    assert findings.complete


@pytest.mark.skipif(
    not HAS_POCL or shutil.which("gcc") is None, reason="needs gcc and PoCL from pip"
)
def test_a_real_library_that_crashes_while_it_is_loaded(tmp_path: Path) -> None:
    source = tmp_path / "crash.c"
    source.write_text(
        "#include <signal.h>\n__attribute__((constructor)) void f(void) { raise(SIGSEGV); }\n"
    )
    library = tmp_path / "libcrash.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    (tmp_path / "crash.icd").write_text(f"{library}\n")
    host = Host(environ={**os.environ, "OCL_ICD_VENDORS": str(tmp_path)})
    findings = find(quick("attic"), host)
    found = problems(findings)
    assert found.pop("crash").startswith("crashed with SIGSEGV")
    assert list(found.values()) == [""]
    # With the environment for tasks, the very loader that would crash finds only PoCL.
    listing = "import pyopencl as cl; print(len(cl.get_platforms()))"
    env = {**host.environ, **findings.environment}
    done = subprocess.run([sys.executable, "-c", listing], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "1")


# --- the handle for the daemon ------------------------------------------------------------------


def wait_for(probed: Probe) -> Findings:
    while not probed.poll():
        assert select.select([probed.fileno()], [], [], 60)[0], "the probe never wrote"
    return probed.finish()


def quiet(fakes: Path) -> dict[str, str]:
    """An environment in which the probe finds no driver, and so is quick."""
    (fakes / "modules/pyopencl.py").write_text("raise ImportError")
    return {**os.environ, "PYTHONPATH": str(fakes / "modules")}


def test_the_daemon_waits_on_a_descriptor(fakes: Path) -> None:
    labels = {"room": "-attic=1", "é": ""}
    probed = start_probe("-attic", labels, ["sh", "-x"], env=quiet(fakes))
    findings = wait_for(probed)
    assert findings.complete
    assert findings.capabilities.name == "-attic"
    assert findings.capabilities.labels == labels
    assert "sh" in findings.capabilities.programs
    assert probed.fileno() == -1
    assert probed.finish() == findings


def stand_in(monkeypatch: pytest.MonkeyPatch, *line: str) -> None:
    monkeypatch.setattr(probe, "command", lambda *_: list(line))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["true"], "gave no answer"),
        (["false"], "gave no answer"),
        (["echo", '{"capabilities": 1}'], "gave no answer"),
        (["yes", "{}"], "wrote too much"),
        (["/nonexistent/python"], "could not be started"),
    ],
)
def test_a_probe_that_fails_leaves_what_is_known(
    monkeypatch: pytest.MonkeyPatch, line: list[str], says: str
) -> None:
    stand_in(monkeypatch, *line)
    findings = wait_for(start_probe("attic"))
    assert not findings.complete
    assert findings.capabilities.devices == ()
    assert findings.capabilities.cores >= 1
    [note] = findings.capabilities.notes
    assert says in note


def test_a_probe_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "tail", "-f", "/dev/null")
    monkeypatch.setattr(probe, "GRACE_MS", 0)
    probed = start_probe("attic", limit_ms=0)
    assert probed.poll()
    assert "did not end in time" in probed.finish().capabilities.notes[0]


def test_an_early_finish_ends_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "tail", "-f", "/dev/null")
    probed = start_probe("attic")
    assert not probed.poll()
    assert probed.fileno() >= 0
    assert "was ended early" in probed.finish().capabilities.notes[0]
    assert probed.fileno() == -1
    probed.close()


def test_no_probe_outlives_its_parent(fakes: Path) -> None:
    (fakes / "vendors/stuck.icd").write_text("hang")
    script = (
        "import os, signal\n"
        "from blackroad.discovery.probe import start_probe\n"
        "probe = start_probe()\n"
        "print(probe._process.pid, flush=True)\n"
        "signal.pause()\n"
    )
    ready = fakes / "ready"
    os.mkfifo(ready)
    env = {**host_with(fakes).environ, "FAKE_READY": str(ready)}
    env["PYTHONPATH"] += os.pathsep + str(Path(probe.__file__).parents[2])
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=env)
    assert parent.stdout is not None
    child = os.pidfd_open(int(parent.stdout.readline()))
    # Reading waits until the driver's own process hangs.
    grandchild = os.pidfd_open(int(ready.read_text()))
    try:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        # Left alone they would stay for twice as long.
        for process in (child, grandchild):
            assert select.select([process], [], [], 10)[0], "a probe outlived its parent"
    finally:
        os.close(child)
        os.close(grandchild)
        parent.stdout.close()


def test_the_module_prints_one_json_line(fakes: Path) -> None:
    env = quiet(fakes)
    env["PYTHONPATH"] += os.pathsep + str(Path(probe.__file__).parents[2])
    line = [sys.executable, "-m", "blackroad.discovery.probe"]
    done = subprocess.run([*line, "--json", "--name", "attic"], env=env, capture_output=True)
    assert done.stdout.count(b"\n") == 1
    assert json.loads(done.stdout)["capabilities"]["name"] == "attic"
    assert msgspec.json.decode(done.stdout, type=Findings).complete
    plain = subprocess.run(line, env=env, capture_output=True, text=True)
    assert "pip install pyopencl" in plain.stdout


def test_a_description_that_is_too_long_is_cut_to_what_others_read() -> None:
    labels = {f"{number:064}": "x" * 64 for number in range(64)}
    programs = tuple(f"{number:064}" for number in range(256))
    caps: Capabilities = msgspec.structs.replace(
        quick("attic", labels), programs=programs, notes=("n" * 400,) * 16
    )
    fitted = probe_find._fitted(caps)
    assert decode(encode(fitted)) == fitted
    assert fitted.labels == labels
    assert fitted.programs == programs[:32]
