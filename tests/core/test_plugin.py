"""The plugin loader: lazy, isolating, and polite in refusing."""

import sys
import types
from importlib.metadata import EntryPoint

import pytest

import edgekit
from edgekit.errors import MissingPluginError, PluginError
from edgekit.plugin import registry as plugin


@pytest.fixture
def make(monkeypatch):
    """Make an installed-looking plugin out of a function that fills a module."""

    def make_plugin(name, fill, version="1.2.3"):
        module = types.ModuleType(f"edgekit_test_{name}")
        module.edgekit_api = (1, 0)
        fill(module)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return EntryPoint(name, module.__name__, "edgekit"), f"edgekit-{name}", version

    return make_plugin


def recipes(*names, target="edgekit.pipeline:AsIs"):
    def fill(module):
        @edgekit.hookimpl
        def edgekit_register_recipes(register):
            for name in names:
                register(name, target)

        module.edgekit_register_recipes = edgekit_register_recipes

    return fill


def test_a_plugin_is_loaded_and_its_targets_only_when_used(make):
    manager = plugin.build([make("one", recipes("R", target="colorsys:rgb_to_hls"))])
    sys.modules.pop("colorsys", None)
    assert manager.plugins[-1].provides == {"recipes": ("R",)}
    assert "colorsys" not in sys.modules
    with pytest.raises(PluginError, match="lacks name, plan"):
        manager.load("recipes", "R")
    assert "colorsys" in sys.modules


def test_a_class_is_instantiated(make):
    manager = plugin.build([make("one", recipes("R"))])
    assert type(manager.load("recipes", "R")).__name__ == "AsIs"


def test_a_plugin_that_does_not_import_breaks_no_other(make):
    broken = EntryPoint("broken", "edgekit_test_does_not_exist", "edgekit"), "edgekit-broken", "0.1"
    manager = plugin.build([broken, make("good", recipes("R"))])
    first, second = manager.plugins[-2:]
    assert (first.status, first.distribution, first.version) == ("failed", "edgekit-broken", "0.1")
    assert "No module named 'edgekit_test_does_not_exist'" in first.error
    assert second.status == "loaded"


def test_a_raising_hook_breaks_no_other_and_registers_nothing(make):
    def fill(module):
        @edgekit.hookimpl
        def edgekit_register_recipes(register):
            register("half", "json:loads")
            raise RuntimeError("out of tea")

        module.edgekit_register_recipes = edgekit_register_recipes

    manager = plugin.build([make("bad", fill), make("good", recipes("R"))])
    assert manager.plugins[-2].status == "failed"
    assert "RuntimeError: out of tea" in manager.plugins[-2].error
    assert [r.name for r in manager.all("recipes")] == ["R"]


def test_an_unknown_hook_is_reported(make):
    def fill(module):
        @edgekit.hookimpl
        def edgekit_register_toasters(register):
            pass

        module.edgekit_register_toasters = edgekit_register_toasters

    info = plugin.build([make("odd", fill)]).plugins[-1]
    assert info.status == "failed"
    assert "edgekit_register_toasters" in info.error


@pytest.mark.parametrize(
    ("api", "sentence"),
    [
        ((1, 0), ""),
        ((1, 1), "it is written for plugin contract 1.1 and this edgekit has 1.0: upgrade edgekit."),
        ((2, 0), "it is written for plugin contract 2.0 and this edgekit has 1.0: upgrade edgekit."),
        ((0, 9), "it is written for plugin contract 0.9 and this edgekit has 1.0: upgrade the plugin."),
        (None, "it does not state the plugin contract it is written for: set edgekit_api = (1, 0) in its module."),
        ("1.0", "it does not state the plugin contract it is written for: set edgekit_api = (1, 0) in its module."),
    ],
)
def test_the_version_check(api, sentence):
    assert plugin.refused(api) == sentence


def test_a_refused_plugin_registers_nothing(make):
    def fill(module):
        recipes("R")(module)
        module.edgekit_api = (9, 0)

    manager = plugin.build([make("future", fill)])
    assert manager.plugins[-1].status == "refused"
    assert not manager.all("recipes")


def test_two_plugins_claiming_one_name_name_both_and_the_cure(make):
    manager = plugin.build([make("a", recipes("R")), make("b", recipes("R", "S"))])
    assert manager.find("recipes", "S").plugin == "b"  # the clash is confined to the name
    with pytest.raises(PluginError) as caught:
        manager.find("recipes", "R")
    assert str(caught.value) == (
        "recipe 'R' is claimed by edgekit-a and edgekit-b; uninstall one of them, "
        "or switch it off with EDGEKIT_NO_PLUGINS=b"
    )


def test_a_built_in_cannot_be_shadowed(make):
    def fill(module):
        @edgekit.hookimpl
        def edgekit_register_formats(register):
            register("hf", "json:JSONDecoder")

        module.edgekit_register_formats = edgekit_register_formats

    manager = plugin.build([make("thief", fill)])
    assert manager.plugins[-1].status == "failed"
    assert "built-ins cannot be shadowed" in manager.plugins[-1].error
    assert manager.find("formats", "hf").distribution == "edgekit-core"


@pytest.mark.parametrize("value", ["1", "one", "edgekit-one", "zero,one"])
def test_plugins_can_be_switched_off(make, monkeypatch, value):
    monkeypatch.setenv("EDGEKIT_NO_PLUGINS", value)
    manager = plugin.build([make("one", recipes("R"))])
    assert manager.plugins[-1].status == "disabled"
    assert not manager.all("recipes")


def test_switching_one_off_leaves_the_others(make, monkeypatch):
    monkeypatch.setenv("EDGEKIT_NO_PLUGINS", "one")
    manager = plugin.build([make("one", recipes("R")), make("two", recipes("S"))])
    assert [p.status for p in manager.plugins[-2:]] == ["disabled", "loaded"]


def test_a_missing_name_says_what_there_is_and_what_to_install():
    manager = plugin.build([])
    with pytest.raises(
        MissingPluginError, match=r"no format 'gguf' is installed \(there are: hf\); pip install edgekit-gguf$"
    ):
        manager.find("formats", "gguf")


def test_a_missing_name_invents_no_distribution():
    for role, name in (("formats", "gguf-nope"), ("runtimes", "cuda"), ("commands", "launch")):
        with pytest.raises(MissingPluginError) as told:
            plugin.build([]).find(role, name)
        assert "install edgekit" not in str(told.value)
        assert "(there are: " in str(told.value)


def test_what_is_installed_and_broken_is_not_to_be_installed_again():
    broken = plugin.PluginInfo("gguf", "edgekit-gguf", "1", status="failed", error="ImportError: no gguf")
    with pytest.raises(MissingPluginError) as told:
        plugin.Manager([broken]).find("formats", "gguf")
    assert str(told.value) == (
        "no format 'gguf' is installed (there are: none); not loaded: edgekit-gguf (ImportError: no gguf)"
    )


def test_a_target_that_does_not_import_names_its_distribution(make):
    manager = plugin.build([make("one", recipes("R", target="edgekit_nowhere:thing"))])
    with pytest.raises(PluginError, match=r"recipe 'R' of edgekit-one cannot be loaded: ModuleNotFoundError"):
        manager.load("recipes", "R")


@pytest.mark.parametrize("target", ["no_colon", 3])
def test_a_malformed_registration_fails_its_plugin(make, target):
    info = plugin.build([make("one", recipes("R", target=target))]).plugins[-1]
    assert info.status == "failed"
    assert "package.module:attribute" in info.error


def test_a_plugin_cannot_end_its_host():
    def leave():
        raise SystemExit(3)

    manager = plugin.Manager()
    plugin._add(manager, plugin.PluginInfo("quitter", "edgekit-quitter", "1"), leave)
    assert manager.plugins[-1].status == "failed"
    assert "SystemExit: 3" in manager.plugins[-1].error


def test_a_plugin_that_prints_is_told_of_and_stdout_stays_clean(make, capsys, monkeypatch):
    point, distribution, version = make("loud", recipes("R"))
    module = sys.modules[point.value]
    manager = plugin.Manager()
    plugin._add(manager, plugin.PluginInfo("loud", distribution, version), lambda: print("hello") or module)
    assert capsys.readouterr().out == ""
    assert manager.plugins[-1].status == "loaded"
    assert manager.plugins[-1].error == "it writes to stdout when it is imported; ask its authors to stop that"


def test_an_object_that_lacks_its_roles_methods_is_named(make):
    manager = plugin.build([make("one", recipes("R", target="json:JSONDecoder"))])
    with pytest.raises(PluginError) as caught:
        manager.load("recipes", "R")
    assert str(caught.value) == (
        "recipe 'R' of edgekit-one lacks name, plan; "
        "the docstring of edgekit_register_recipes names what it has to implement"
    )
