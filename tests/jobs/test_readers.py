"""What the readers make of a file: values with their lines, commands, images, the options of Slurm."""

import re

import pytest

from sonify.doctor.jobs.commands import TRAINING_OPTIONS, _parse_training, ours_in
from sonify.doctor.jobs.images import Building, has_program, read_builds, read_stages, short_name, user_of
from sonify.doctor.jobs.pods import to_amount
from sonify.doctor.jobs.scripts import read_slurm, variables_set, variables_used
from sonify.doctor.jobs.text import Unreadable, expand, read_documents, read_source, split_commands
from sonify.errors import InputError
from train import pixart


def source_of(folder, name, text):
    """A file as it is read."""
    (folder / name).write_text(text)
    return read_source(folder / name, name)


def test_values_know_their_lines_and_merged_keys_are_there():
    (node,) = read_documents("a: &a\n  b: 1\n  c:\n    - x\n    - y\nd:\n  <<: *a\n  b: 2\n")
    assert node.at("d").plain() == {"b": 2, "c": ["x", "y"]}
    assert (node.at("d", "b").line, node.at("d", "c", "1").text(), node.at("d", "c", "1").line) == (8, "y", 5)
    missing = node.at("d", "c", "7", "z")
    assert (missing.given, missing.line) == (False, 3)


def test_a_key_that_stands_twice_is_refused():
    with pytest.raises(Unreadable, match="a stands in line 1 already") as caught:
        read_documents("a: 1\na: 2\n")
    assert caught.value.line == 2


def test_commands_are_told_from_what_is_said_around_them(tmp_path):
    source = source_of(
        tmp_path, "a.yaml", "# Does it. Run:\n#\n#   A=1 one \\\n#     --two && three\n#\n# Needs: it's four.\na: 1\n"
    )
    assert [(each.line, each.words, dict(each.set)) for each in source.commands] == [
        (3, ("one", "--two"), {"A": "1"}),
        (3, ("three",), {}),
    ]
    assert source.prose == "Does it. Run:\n\n\nNeeds: it's four."


def test_a_page_has_commands_where_it_is_set_in_or_fenced(tmp_path):
    source = source_of(tmp_path, "a.md", "# One\n\n    two three   # say four\n\n```bash\n$ five\n```\nsix\n")
    assert [(each.line, each.words) for each in source.commands] == [(3, ("two", "three")), (6, ("five",))]
    assert "say four" in source.prose
    assert "six" in source.prose


def test_strings_over_lines_and_what_is_fed_in_are_no_commands():
    text = 'a "\nb\n" c\ncat <<EOF\nd\nEOF\ne\n'
    assert [(each.line, each.words[0]) for each in split_commands(text, 1)] == [(1, "a"), (4, "cat"), (7, "e")]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("python -m sonify run --config a", ("sonify", ("run", "--config", "a"))),
        ("srun -N 1 torchrun -m train.pixart --config a 2>&1", ("train.pixart", ("--config", "a", "2"))),
        ("ray job submit --working-dir . -- sonify run a=1", ("sonify", ("run", "a=1"))),
        ("sonify train --config a", ("train.pixart", ("--config", "a"))),
        ("pip install sonify now", None),
        ("set -- sonify train", None),
    ],
)
def test_our_commands_are_known_whatever_starts_them(words, expected):
    (command,) = split_commands(words, 1)
    assert ours_in(command.words) == expected


def test_the_options_of_a_training_are_those_of_its_parser(capsys):
    """Its parser is behind libraries that need not be where a folder is examined."""
    with pytest.raises(SystemExit):
        pixart.main(["--help"])
    said = capsys.readouterr().out
    options = {name: int(bool(value)) for name, value in re.findall(r"^  (--[\w-]+)( [A-Z]+)?", said, re.MULTILINE)}
    assert options == TRAINING_OPTIONS


@pytest.mark.parametrize(
    ("words", "config", "rest"),
    [
        ("--config a b=1 --dry-run --prices gpu_hour=2 c=3", "a", ["b=1", "c=3"]),
        ("b=1 --config=a --prices=p", "a", ["b=1"]),
    ],
)
def test_a_trainings_words_are_its_configuration_and_overrides(words, config, rest):
    assert _parse_training(words.split()) == (config, rest)


@pytest.mark.parametrize("words", ["--config", "b=1", "--config a --colour", "--config a b"])
def test_a_trainings_words_that_mean_nothing_are_refused(words):
    with pytest.raises(InputError):
        _parse_training(words.split())


def test_a_command_within_a_shell_gets_that_shells_arguments():
    (command,) = split_commands("""srun bash -c 'A=1 exec python -m train.pixart "$@"' -- --config a b=1""", 1)
    assert ours_in(command.words) == ("train.pixart", ("--config", "a", "b=1"))


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("$A/${A}/$(A)", "1/1/1"),
        ("${B:-2}", "2"),
        ("${E:-2}", "2"),
        ("${E-2}", ""),
        ("${B:-${C}/d}", "${C}/d"),
        ("${B:-${A}/d}", "1/d"),
        ("${F}", "${F}"),
        ("$B", "$B"),
    ],
)
def test_variables_are_filled_in_as_far_as_they_are_known(word, expected):
    assert expand(word, {"A": "1", "E": "", "F": "${F}"}) == expected


def test_amounts_are_kubernetes_own():
    assert [to_amount(text) for text in ("500m", "2", "64Gi", "1M", "x", "-1", "")] == [
        0.5,
        2,
        64 * 2**30,
        1e6,
        None,
        None,
        None,
    ]


DOCKERFILE = """\
FROM python:3.11 AS builder
RUN python -m venv /opt/vllm && /opt/vllm/bin/pip install vllm==1.0
RUN bash tools/engines.sh /opt/engines lmdeploy
FROM python:3.11 AS %s
ENV PATH=/opt/engines/bin:$PATH
COPY --from=builder /opt/vllm /srv/vllm
COPY --from=builder /opt/engines /opt/engines
RUN ln -s /srv/vllm/bin/vllm /usr/local/bin/vllm
USER me:me
FROM gpu
USER root
"""
BUILDING = {"engines.sh": 'for e in "$@"; do cp x "$1/bin/${e}"; done\n'}


def test_an_images_programs_are_those_installed_linked_and_copied(tmp_path):
    stages = read_stages(source_of(tmp_path, "Dockerfile", DOCKERFILE % "gpu"))
    building = Building(stages, BUILDING)
    builder, gpu, last = stages
    assert [stage.name for stage in stages] == ["builder", "gpu", "2"]
    assert (user_of(gpu), user_of(last)) == ("me", "root")
    assert [has_program(stage, "vllm", building) for stage in stages] == [False, True, True]
    assert [has_program(stage, "lmdeploy", building) for stage in stages] == [False, True, True]
    assert has_program(gpu, "/srv/vllm/bin/vllm", building)
    assert not has_program(gpu, "/opt/vllm/bin/vllm", building)
    assert has_program(builder, "/opt/vllm/bin/vllm", building)
    assert not has_program(gpu, "sglang", building)
    assert not has_program(gpu, "lmdeploy", Building(stages, {}))


def test_what_is_built_has_the_names_that_the_commands_give(tmp_path):
    stages = read_stages(source_of(tmp_path, "Dockerfile", DOCKERFILE % "gpu"))
    build = 'docker build --target "${t}" -f Dockerfile -t "$1/sonify:${t}" .'
    text = f"for t in builder gpu; do\n  {build}\ndone\ndocker build -t a/b .\n"
    made = read_builds([source_of(tmp_path, "build.sh", text)], stages)
    assert [(each.name, each.tag, each.stage.name, each.line) for each in made] == [
        ("sonify", "builder", "builder", 2), ("sonify", "gpu", "gpu", 2), ("b", "latest", "2", 4),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("registry.example:5000/a/sonify:gpu", ("sonify", "gpu")),
        ("sonify", ("sonify", "latest")),
        ("a/sonify@sha256:00", ("sonify", "latest")),
    ],
)
def test_an_image_is_known_without_its_registry(image, expected):
    assert short_name(image) == expected


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("--nodes=2-4 -t 1-00:00:00 --exclusive", ""),
        ("-N4 -J name --gres=gpu:a100:8,shard:2", ""),
        ("--signal=B:TERM@120 --mem=0 --requeue", ""),
        ("--nodes", "--nodes: expected"),
        ("--requeue=yes", "--requeue: expected no value, found 'yes'"),
        ("--gpu-per-node=8", "sbatch has no option --gpu-per-node"),
        ("--time=soon", "--time: expected"),
        ("--signal=TERM@soon", "--signal: expected"),
        ("--exclusive=me", "--exclusive: expected"),
        ("8", "'8' is no option of sbatch"),
        ("", "no option behind #SBATCH"),
    ],
)
def test_options_are_read_as_strictly_as_sbatch_does(tmp_path, line, wrong):
    script = read_slurm(source_of(tmp_path, "a.sh", f"#!/bin/bash\n#SBATCH {line}\n"))
    assert script is not None
    assert [wrong in why and number == 2 for number, why in script.wrong] == ([True] if wrong else [])


def test_slurms_own_options_and_variables_are_known(tmp_path):
    options = "#SBATCH --gres=gpu:h100:4\n#SBATCH --ntasks-per-node=4\n"
    text = f"#!/bin/bash\n{options} # SBATCH --mem=1\necho\n#SBATCH --mem=1\n"
    script = read_slurm(source_of(tmp_path, "a.sh", text))
    assert script is not None
    assert script.gpus_per_node == 4
    assert script.variables(2)["SLURM_NTASKS"] == "8"
    assert [number for number, _ in script.wrong] == [4, 6]
    assert not script.has("mem")


def test_a_scripts_variables_are_told_by_who_sets_them(tmp_path):
    lines = ["A=1", "export B=2 C", "read -r D E", 'for f in x; do echo "$f $A ${G:-1} ${H} \\$I"; done', "# $J"]
    text = "\n".join([*lines, 'echo "${K:?say it}"\n'])
    source = source_of(tmp_path, "a.sh", text)
    assert {*"ABDEf"} <= variables_set(source).keys()
    assert [(name, line) for name, line, optional in variables_used(source) if not optional] == [
        ("f", 4),
        ("A", 4),
        ("H", 4),
    ]
