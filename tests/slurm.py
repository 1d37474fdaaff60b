"""A stand-in for Slurm's commands: `sbatch` runs the file at once on this machine, `srun` its tasks."""

from __future__ import annotations

import sys
from pathlib import Path

SBATCH = """
import os, re, subprocess, sys
from pathlib import Path
text = Path(sys.argv[-1]).read_text()
flags = dict(re.findall(r"^#SBATCH --([\\w-]+)=(.*)$", text, re.MULTILINE))
log = Path(__file__).parent
number = len(list(log.glob("submitted_*")))
(log / f"submitted_{number}").write_text(text)
nodes, tasks = int(flags["nodes"]), int(flags.get("ntasks-per-node", 1))
job = str(100 + number)
first, last = map(int, re.match(r"(\\d+)-(\\d+)", flags["array"]).groups()) if "array" in flags else (0, 0)
print(f"Submitted batch job {job}", flush=True)
if os.fork():
    os._exit(0)  # what was submitted is filed under the job's number only now
os.setsid()
for stream in (1, 2):
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
for task in range(first, last + 1):
    names = dict(SLURM_JOB_ID=job, SLURM_NTASKS=nodes * tasks, SLURM_JOB_NUM_NODES=nodes)
    names["SLURM_JOB_NODELIST"] = "localhost"
    if "array" in flags:
        names |= dict(SLURM_ARRAY_JOB_ID=job, SLURM_ARRAY_TASK_ID=task, SLURM_JOB_ID=f"{job}{task}")
    environment = {**os.environ, **{name: str(value) for name, value in names.items()}}
    subprocess.run(["bash", str(log / f"submitted_{number}")], env=environment)
"""
SRUN = """
import os, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("-"):
    del words[: 2 if words[0] in ("--output", "--error") else 1]
log = open(os.path.join(os.path.dirname(__file__), "srun.log"), "a")
print(" ".join(words), file=log, flush=True)
started = []
for rank in range(int(os.environ["SLURM_NTASKS"])):
    names = dict(SLURM_PROCID=rank, SLURM_LOCALID=rank, SLURM_NODEID=0)
    output = open(os.path.join(os.path.dirname(__file__), f"task_{os.environ['SLURM_JOB_ID']}_{rank}"), "w")
    environment = {**os.environ, **{name: str(value) for name, value in names.items()}}
    started.append(subprocess.Popen(words, env=environment, stdout=output, stderr=output))
sys.exit(max(process.wait() for process in started))
"""
SACCT = """
import sys
print("JobID|State|NodeList")
for i, word in enumerate(sys.argv):
    if word == "-j":
        print(f"{sys.argv[i + 1]}|RUNNING|localhost")  # a result in its folder is what ends a job
"""


def install(folder: Path) -> Path:
    """Write the commands into a folder, which is to stand first in PATH; they log there what they are given."""
    folder.mkdir(parents=True)
    for name, code in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", SACCT)):
        (folder / name).write_text(f"#!{sys.executable}\n{code}")
        (folder / name).chmod(0o755)
    return folder
