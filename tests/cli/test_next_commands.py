"""Commands end with the command that comes next, and recipes are found."""

from mmchat.cli.init import next_commands
from mmchat.cli.main import build_parser, find_command, parse
from mmchat.cli.recipe.recipes import recipe_files
from mmchat.settings_schema import dataclasses_in
from mmchat.training.config import RunConfig


def test_init_ends_with_the_recipe_that_comes_next(tmp_path):
    for is_aligned, weights, recipe, command in (
        (False, True, "pretrain", "train"),
        (True, True, "sft", "train"),
        (False, False, "pretrain", "plan"),
    ):
        write, following = next_commands(tmp_path / "a b", is_aligned, weights).splitlines()
        assert write == f"next: mmchat recipe write own/{recipe} --out {recipe}.yaml"
        assert following.strip() == f"mmchat {command} {recipe}.yaml --model '{tmp_path}/a b' --data.path DATA"
        assert recipe_files()[f"own/{recipe}"].is_file()


def test_every_objective_ends_with_a_command_that_its_parser_takes():
    for kind in dataclasses_in(RunConfig.__annotations__["objective"]):
        _, *words = kind.use.format(model="runs/x/model").split()
        name, rest = find_command(words)
        parse(build_parser(name), rest)


def test_a_recipe_is_found_by_its_last_word(run):
    status, _, err = run("recipe", "show", "sft")
    assert status == 2 and err.startswith("error: there is no recipe 'sft'; there are llava15/sft, own/sft, ")
    assert run("recipe", "show", "wibble")[2] == "error: there is no recipe 'wibble' (see `mmchat recipe list`)\n"


def test_the_list_of_recipes_is_wrapped_at_80_columns(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, run("recipe", "list")[1].splitlines())) <= 80
