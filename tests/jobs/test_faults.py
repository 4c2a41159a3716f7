"""The folder that ships provides all that it uses, and each fault that was once in it is found when it is put back."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from sonify.doctor.findings import Finding, Outcome
from sonify.doctor.jobs import examine_jobs

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Fault:
    """`old` becomes `new` in a file; what is said then, and at which line: the first that has `at`."""

    name: str
    file: str
    old: str
    new: str
    said: str
    at: str = ""
    where: str = ""  # in which file it shows, where that is another one


FAULTS = (
    # The first paragraph: no engine in the image, models nowhere, images and GPUs on the wrong nodes, 30 seconds.
    Fault("no-engine-in-the-image", "Dockerfile", "COPY --from=engines /opt/engines /opt/engines\n", "",
          "concepts.extractors.0.command is vllm, which is not on PATH", "entrypoint:", "rayjob.yaml"),
    Fault("one-engine-is-missing", "Dockerfile", "RUN bash jobs/engines.sh /opt/engines lmdeploy\n", "",
          "concepts.extractors.1.command is lmdeploy", "ray job submit", "ray-up.yaml"),
    Fault("engines-not-on-path", "Dockerfile", ":/opt/engines/bin:$PATH\nWORKDIR", ":$PATH\nWORKDIR",
          "is vllm, which is not on PATH in the image of gpu", "ray job submit", "raycluster.yaml"),
    Fault("engines-not-on-slurms-path", "slurm-sonify.sh", "${PWD}/engines/bin:", "",
          "concepts.extractors.0.command is vllm, which nothing here puts on PATH", "sbatch --nodes 4"),
    Fault("model-mounted-nowhere", "rayjob.yaml", "model=/data/models/cogvlm-chat-hf", "model=/models/cogvlm-chat-hf",
          "concepts.extractors.1.model is /models/cogvlm-chat-hf, which lies below no mount of head, gpu",
          "entrypoint:"),
    Fault("model-of-the-configuration", "raycluster.yaml",
          "concepts.extractors.1.model=/data/models/cogvlm-chat-hf engine.workers", "engine.workers",
          "concepts.extractors.1.model is /models/cogvlm-chat-hf", "ray job submit"),
    Fault("model-fetched-nowhere", "ray-up.yaml", "[bash /opt/sonify/jobs/fetch-models.sh /home/ray/models sonify]",
          "[]",
          "concepts.extractors.1.model is /home/ray/models/cogvlm-chat-hf, which is brought into no container of head"
          ", gpu", "ray job submit"),
    Fault("model-not-on-slurms-disk", "slurm-sonify.sh", '"concepts.extractors.1.model=${HF_HOME}/cogvlm-chat-hf" ', "",
          "concepts.extractors.1.model is /models/cogvlm-chat-hf, which nothing here provides", "sbatch --nodes 4"),
    Fault("images-on-nodes-that-lack-them", "ray-up.yaml", " images.path=s3://BUCKET/sa1b", "",
          "images.path is /data/sa1b, which is brought into no container of head, gpu, cpu", "ray job submit"),
    Fault("gpus-on-cpu-nodes", "ray-up.yaml", "run_options: [--ulimit",
          "worker_run_options: [--gpus all]\n  run_options: [--ulimit",
          "cpu: has no GPU, and Docker does not start with --gpus there", "[--gpus all]"),
    Fault("no-gpus-on-gpu-nodes", "ray-up.yaml", "      worker_run_options: [--gpus all]\n", "",
          "gpu: its container sees no GPU", "  gpu:  "),
    Fault("thirty-seconds", "slurm-sonify.sh", "export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=900\n", "",
          "symmetric-run gives up after 30 s", "ray symmetric-run"),
    Fault("too-few-seconds", "slurm-sonify.sh", "WAIT_TIMEOUT=900", "WAIT_TIMEOUT=30",
          "symmetric-run gives up after 30 s", "ray symmetric-run"),
    # Images.
    Fault("an-image-that-nobody-builds", "rayjob.yaml", "image: REGISTRY/sonify:gpu", "image: REGISTRY/sonify:latest",
          "head: nothing here builds the image REGISTRY/sonify:latest", "sonify:latest"),
    Fault("no-image-for-cpu-nodes", "ray-up.yaml", "worker_image: REGISTRY/sonify:cpu",
          "worker_image: REGISTRY/sonify-cpu", "cpu: nothing here builds the image REGISTRY/sonify-cpu", "sonify-cpu"),
    Fault("a-stage-that-is-not-there", "build.sh", "for target in cpu gpu;", "for target in cpu cuda;",
          "no stage cuda in Dockerfile", "docker build"),
    Fault("nodes-without-the-image", "ray-up.yaml", "pull_before_run: true", "pull_before_run: false",
          "gpu: a new node lacks the image", "  gpu:  "),
    Fault("no-torch-where-it-is-needed", "rayjob.yaml", "image: REGISTRY/sonify:gpu", "image: REGISTRY/sonify:cpu",
          "needs the library torch on head", "entrypoint:"),
    # Storage.
    Fault("a-volume-that-is-not-declared", "rayjob.yaml", "{name: data, mountPath: /data}",
          "{name: datas, mountPath: /data}", "no volume 'datas' is declared", "datas"),
    Fault("a-claim-that-nobody-makes", "storage.yaml", "name: sonify-data", "name: sonify-disk",
          "nothing here makes the claim sonify-data", "- name: data", "rayjob.yaml"),
    Fault("a-claim-of-one-node", "storage.yaml", "[ReadWriteMany]", "[ReadWriteOnce]",
          "sonify-data: pods of several nodes mount it", "apiVersion"),
    Fault("models-in-a-pod-that-ends", "rayjob.yaml", "{name: HF_HOME, value: /data/models}",
          "{name: HF_HOME, value: /models}", "HF_HOME is /models, which lies below no lasting mount", "HF_HOME"),
    Fault("a-run-in-a-pod-that-ends", "rayjob.yaml", "run_dir=/data/runs/sam", "run_dir=/runs/sam",
          "run_dir is /runs/sam, which lies below no mount", "entrypoint:"),
    Fault("a-relative-run", "rayjob.yaml", "run_dir=/data/runs/sam", "run_dir=runs/sam",
          "run_dir is runs/sam, which each node takes for another place", "entrypoint:"),
    Fault("a-relative-collection", "rayjob.yaml", "images.path=/data/sa1b\n",
          "images.path=/data/sa1b audio.sources.1.path=fsd50k\n",
          "audio.sources.1.path is fsd50k, which each node takes for another place", "entrypoint:"),
    Fault("input-on-another-disk", "slurm-train.sh", "sbatch jobs/slurm-train.sh data.runs.0=/shared/runs/sam",
          "sbatch jobs/slurm-train.sh data.runs.0=/elsewhere/sam", "data.runs.0 is /elsewhere/sam", "/elsewhere/sam"),
    Fault("a-disk-that-root-owns", "train-job.yaml", ", fsGroup: 1000, fsGroupChangePolicy: OnRootMismatch", "",
          "who may not write sonify-data", "    spec:"),
    Fault("no-shared-memory", "train-job.yaml", "            - {name: shm, mountPath: /dev/shm}\n", "",
          "loader processes have no /dev/shm", "    spec:"),
    Fault("shared-memory-on-disk", "train-job.yaml", "{medium: Memory, sizeLimit: 64Gi}", "{}",
          "loader processes have no /dev/shm", "    spec:"),
    Fault("little-shared-memory", "train-job.yaml", "sizeLimit: 64Gi", "sizeLimit: 512Mi", "/dev/shm has 0.5 Gi",
          "- name: shm"),
    Fault("more-shared-memory-than-memory", "train-job.yaml", "sizeLimit: 64Gi", "sizeLimit: 640Gi",
          "shm may take all memory that it has", "- name: shm"),
    Fault("another-revision", "fetch-models.sh", "--revision b234b804b114d9e37bb655e11cbbb5f5e971b7a9",
          "--revision 0000000000000000000000000000000000000000",
          "fetches llava-hf/llava-1.5-7b-hf at 000000000000, and concepts.extractors.0.model asks for b234b804b114",
          "hf download llava-hf"),
    Fault("a-model-that-nobody-fetches", "models-job.yaml", "jobs/fetch-models.sh, /data/models]",
          "jobs/fetch-models.sh, /data/weights]",
          "concepts.extractors.1.model is /data/models/cogvlm-chat-hf, which nothing here fetches", "entrypoint:",
          "rayjob.yaml"),
    Fault("a-model-by-another-name", "rayjob.yaml", "/data/models/cogvlm-chat-hf", "/data/models/cogvlm",
          "concepts.extractors.1.model is /data/models/cogvlm, which nothing here fetches", "entrypoint:"),
    Fault("the-listener-is-not-fetched", "fetch-models.sh", "      hf download laion/clap", "      echo laion/clap",
          "retrieval.encoder.model is laion/clap-htsat-unfused, which nothing here fetches", "entrypoint:",
          "rayjob.yaml"),
    Fault("the-extractor-is-not-fetched", "fetch-models.sh", "      hf download llava-hf", "      echo llava-hf",
          "concepts.extractors.0.model is llava-hf/llava-1.5-7b-hf, which nothing here fetches", "sbatch --nodes 4",
          "slurm-sonify.sh"),
    Fault("the-text-checkpoint-is-not-fetched", "fetch-models.sh", "      hf download PixArt", "      echo PixArt",
          "model.init.model is PixArt-alpha/PixArt-XL-2-512x512, which nothing here fetches", "- python",
          "train-job.yaml"),
    Fault("a-page-that-names-no-file", "README.md", "# On a cluster\n", "# On a cluster\n\n`rayjobs.yaml` is one.\n",
          "rayjobs.yaml is not in this set", "rayjobs.yaml"),
    # Secrets and variables.
    Fault("a-secret-in-a-file", "rayjob.yaml", "{name: HF_HOME, value: /data/models}",
          "{name: HF_TOKEN, value: hf_abcdefghijklmnopqrstuvwxyz}", "a secret stands here", "hf_abc"),
    Fault("a-secret-of-no-known-form", "runtime-env.yaml", "env_vars:", "env_vars:\n  VLM_API_KEY: topsecret42",
          "VLM_API_KEY stands here as a value", "topsecret42"),
    Fault("a-secret-that-nobody-makes", "train-job.yaml", "secretRef: {name: sonify-secrets",
          "secretRef: {name: sonify-keys", "nobody is told how to make the secret sonify-keys", "- name: train"),
    Fault("a-variable-that-nobody-sets", "slurm-sonify.sh", '"${RAY_ADDRESS}" --min-nodes',
          '"${HEAD_ADDRESS}" --min-nodes', "$HEAD_ADDRESS is set by nobody", "HEAD_ADDRESS"),
    # Commands and their configuration.
    Fault("a-key-that-is-none", "rayjob.yaml", "engine.workers=16", "engine.wokers=16", "wokers", "entrypoint:"),
    Fault("a-value-that-is-none", "ray-up.yaml", "engine.workers=16", "engine.workers=many", "engine.workers",
          "ray job"),
    Fault("a-configuration-that-is-not-there", "runtime-env.yaml", "configs/sonify/sam.yaml",
          "configs/sonify/sams.yaml", "no such file", "ray job submit"),
    Fault("a-command-that-is-none", "rayjob.yaml", "python -m sonify run --config", "python -m sonify rum --config",
          "rum", "entrypoint:"),
    Fault("an-option-that-is-none", "train-job.yaml", "- --config\n", "- --konfig\n", "expected --config F",
          "- python"),
    Fault("a-file-that-is-not-there", "ray-up.yaml", "--runtime-env jobs/runtime-env.yaml",
          "--runtime-env jobs/runtime.yaml", "runtime.yaml is not in this set", "jobs/runtime.yaml"),
    Fault("a-command-of-ray-that-is-none", "slurm-sonify.sh", "ray symmetric-run --address",
          "ray symetric-run --address", "ray has no command 'symetric-run'", "symetric-run"),
    Fault("an-option-of-ray-that-is-none", "one-machine.sh", "--dashboard-agent-listen-port", "--dashboard-agent-port",
          "no option --dashboard-agent-port", "ray start --head"),
    Fault("a-batch-that-is-not-divided", "train-job.yaml", "- devices=8",
          "- devices=8\n            - batch.per_device=48",
          "batch.total is 640, which 8 devices times batch.per_device 48 do not divide", "- python"),
    Fault("more-devices-than-gpus", "train-job.yaml", "- devices=8", "- devices=16",
          "devices is 16, and there are 8 GPUs", "- python"),
    Fault("fewer-gpus-than-devices-on-slurm", "slurm-train.sh", "#SBATCH --gpus-per-node=8",
          "#SBATCH --gpus-per-node=4", "devices is 8, and there are 4 GPUs", "sbatch jobs/slurm-train.sh"),
    Fault("gpus-that-no-node-has", "rayjob.yaml", "engine.workers=16", "engine.workers=16 concepts.extractors.0.gpus=2",
          "gpus is 2, and no node has more than 1", "entrypoint:"),
    Fault("a-group-that-cannot-grow", "rayjob.yaml", "maxReplicas: 8", "maxReplicas: 0",
          "gpus is 1, and no node has more than 0", "entrypoint:"),
    # Where it runs and how it ends.
    Fault("another-ray", "rayjob.yaml", 'rayVersion: "2.60.0"', 'rayVersion: "2.52.0"', "rayVersion is 2.52.0",
          "2.52.0"),
    Fault("an-open-ray", "raycluster.yaml", "  authOptions: {mode: token}\n", "", "whoever reaches this Ray", "spec:"),
    Fault("an-open-ray-on-aws", "ray-up.yaml", "--env RAY_AUTH_MODE=token, ", "", "cpu: whoever reaches Ray runs code",
          "  cpu:  "),
    Fault("nodes-that-refuse-the-pod", "rayjob.yaml",
          "            tolerations:\n              - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}\n", "",
          "gpu: nodes with GPUs that are kept for them refuse it", "          spec:"),
    Fault("a-gpus-place-without-need", "models-job.yaml", "      restartPolicy: Never\n",
          "      restartPolicy: Never\n      tolerations:\n        - {key: nvidia.com/gpu, operator: Exists, effect: "
          "NoSchedule}\n", "has no GPU, and takes the place of one that has", "{key: nvidia.com/gpu"),
    Fault("too-little-time-to-save", "train-job.yaml", "terminationGracePeriodSeconds: 600",
          "terminationGracePeriodSeconds: 30", "30 seconds from SIGTERM to the end are too few to save",
          "terminationGracePeriodSeconds"),
    Fault("thirty-seconds-to-save", "train-job.yaml",
          "      terminationGracePeriodSeconds: 600   # a checkpoint is 9.7 GB\n", "",
          "30 seconds from SIGTERM to the end are too few to save", "    spec:"),
    Fault("no-time-to-save-on-slurm", "slurm-train.sh", "#SBATCH --signal=TERM@300\n", "",
          "no seconds from SIGTERM to the end are too few", "#SBATCH --job-name"),
    Fault("little-time-to-save-on-slurm", "slurm-train.sh", "--signal=TERM@300", "--signal=TERM@30",
          "30 seconds from SIGTERM", "#SBATCH --signal"),
    Fault("a-node-that-is-lost", "slurm-sonify.sh", "#SBATCH --requeue\n", "", "is not started again",
          "#SBATCH --job-name"),
    Fault("the-address-of-a-name", "slurm-sonify.sh", 'bash -c "${find_address}"', "hostname --ip-address",
          "the address that a name resolves to", "hostname --ip-address | "),
    Fault("an-option-of-sbatch-that-is-none", "slurm-train.sh", "--ntasks-per-node=8", "--ntask-per-node=8",
          "sbatch has no option --ntask-per-node", "--ntask-per-node"),
    Fault("a-value-that-sbatch-refuses", "slurm-sonify.sh", "--time=48:00:00", "--time=two-days", "--time: expected",
          "--time"),
    Fault("an-option-behind-a-command", "slurm-sonify.sh", "set -euo pipefail\n",
          "set -euo pipefail\n#SBATCH --mem=8G\n", "sbatch does not see options behind the first command", "--mem=8G"),
    Fault("photos-are-sent-along", "runtime-env.yaml", '  - "/*"\n', '  - "/runs"\n  - "/.venv*"\n',
          "the upload takes along photos/a.jpg, sounds/a.wav", "excludes:"),
    Fault("the-code-stays-behind", "runtime-env.yaml", '  - "!/train"\n', "", "the upload leaves out train/pixart.py",
          "excludes:"),
    Fault("a-folder-that-another-ray-has", "one-machine.sh", ' --temp-dir "${folder}"', "",
          "meets another Ray on the machine: without --temp-dir", "ray start --head"),
    Fault("a-port-that-another-ray-has", "one-machine.sh", ' --dashboard-agent-listen-port "${ports[2]}"', "",
          "meets another Ray on the machine: without --dashboard-agent-listen-port", "ray start --head"),
    Fault("a-trap-that-ends-every-ray", "one-machine.sh", """'end "$?"' EXIT""",
          """'ray stop; rm -rf "${folder}"' EXIT""", "ray stop ends every Ray of the user", "trap 'ray stop"),
    Fault("a-recipe-that-ends-every-ray", "one-machine.sh", "until (:", "ray stop\nuntil (:",
          "ray stop ends every Ray of the user", "ray stop"),
    Fault("a-signal-that-nobody-hears", "slurm-sonify.sh", "trap 'scontrol requeue \"${SLURM_JOB_ID}\"' USR1",
          "trap 'scontrol requeue \"${SLURM_JOB_ID}\"' USR2", "the batch shell gets USR1, and has no trap for it",
          "#SBATCH --signal"),
    Fault("a-signal-that-is-heard-too-late", "slurm-sonify.sh", '"$@" &\n', '"$@"\n',
          "acts upon USR1 only when its command has ended", "#SBATCH --signal"),
    Fault("a-shell-that-does-not-wait", "slurm-sonify.sh", 'wait "$!"\n', "",
          "acts upon USR1 only when its command has ended", "#SBATCH --signal"),
    Fault("no-way-back-into-the-queue", "slurm-train.sh", '  scontrol requeue "${SLURM_JOB_ID}"\n', "  true\n",
          "a job whose time runs out is not started again", "#SBATCH --signal"),
    Fault("all-of-the-folder-is-sent", "ray-up.yaml", " --runtime-env jobs/runtime-env.yaml", "",
          "all of the folder is sent along", "ray job submit"),
    Fault("more-threads-than-a-node-has", "rayjob.yaml", "engine.workers=16", "engine.workers=16 features.cpus=64",
          "features.cpus is 64, and no node has more than 16", "entrypoint:"),
    Fault("a-ray-that-ends-anothers", "slurm-sonify.sh", "#SBATCH --exclusive\n", "",
          "symmetric-run ends every Ray of the user on its nodes", "#SBATCH --job-name"),
    Fault("an-open-ray-on-slurm", "slurm-sonify.sh", "export RAY_AUTH_MODE=token\n", "", "whoever reaches this Ray",
          "#!/bin/bash"),
    Fault("a-lock-that-stays-behind", "Dockerfile", "COPY jobs/gpu.lock jobs/", "COPY runs/gpu.lock jobs/",
          "runs/gpu.lock is left out by .dockerignore", "runs/gpu.lock"),
    # What the formats themselves refuse.
    Fault("a-field-that-kubernetes-has-not", "storage.yaml", "accessModes:", "accessMode:", "Kubernetes refuses it",
          "spec:"),
    Fault("a-field-that-pods-have-not", "raycluster.yaml", "tolerations:", "toleration:", "Kubernetes refuses it",
          "        spec:"),
    Fault("a-key-that-rays-launcher-has-not", "ray-up.yaml", "idle_timeout_minutes", "idle_timeout_minuets",
          "Ray's launcher refuses it", "cluster_name"),
    Fault("a-script-that-bash-cannot-read", "slurm-train.sh", "\nfi\n", "\n", "bash: ", "exit "),
    Fault("an-instruction-that-is-none", "Dockerfile", "WORKDIR /opt/sonify\n\nFROM builder AS engines",
          "WORKDIRS /opt/sonify\n\nFROM builder AS engines", "'WORKDIRS' is no instruction", "WORKDIRS"),
    Fault("not-yaml", "storage.yaml", "spec:\n", "spec:\n\t", "not read: not YAML", "\t"),
)  # fmt: skip


def copy_jobs(folder: Path) -> Path:
    """The shipped folder beside what an image leaves out, to be changed."""
    shutil.copytree(ROOT / "jobs", folder / "jobs")
    shutil.copy(ROOT / ".dockerignore", folder)
    return folder / "jobs"


def faults_of(folder: Path) -> list[Finding]:
    """What would stop the work."""
    return [finding for finding in examine_jobs(folder) if finding.outcome is Outcome.FAULT]


def test_what_ships_provides_all_that_it_uses(tmp_path):
    findings = list(examine_jobs(copy_jobs(tmp_path)))
    assert [each for each in findings if each.outcome not in (Outcome.OK, Outcome.NOT_TRIED)] == []
    fine = {Path(finding.about).name for finding in findings if finding.outcome is Outcome.OK}
    assert fine >= {path.name for path in (ROOT / "jobs").iterdir() if path.suffix in (".yaml", ".sh", ".md")}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_that_is_put_back_is_found(fault, tmp_path):
    folder = copy_jobs(tmp_path)
    path = folder / fault.file
    text = path.read_text()
    assert fault.old in text, "the folder has changed: bring this fault back in another way"
    path.write_text(text.replace(fault.old, fault.new, 1))
    shown = folder / (fault.where or fault.file)
    line = next(n for n, line in enumerate(shown.read_text().splitlines(), 1) if fault.at in line)
    found = faults_of(folder)
    assert any(fault.said in each.found and each.about == f"{shown}:{line}" for each in found), (
        f"expected {fault.said!r} at {shown.name}:{line}, found "
        + "; ".join(f"{Path(each.about).name}: {each.found}" for each in found)
    )
