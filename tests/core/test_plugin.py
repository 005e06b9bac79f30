"""The plugin loader: lazy, isolating, and polite in refusing."""

import logging
import sys
import threading
import types
from importlib.metadata import EntryPoint

import pytest

import edgekit
from edgekit.cli._log import log_on_stderr
from edgekit.errors import MissingPluginError, PluginError, counted, near_names
from edgekit.plugin import _registry as plugin
from edgekit.reference import Traits


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
    name = "as is"
    manager = plugin.build([make("one", recipes(name))])
    assert type(manager.load("recipes", name)).__name__ == "AsIs"


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
        MissingPluginError, match=r"no format 'gguf' is installed \(available: hf\); pip install edgekit-gguf$"
    ):
        manager.find("formats", "gguf")


def test_what_needs_olive_says_so():
    with pytest.raises(MissingPluginError, match=r"no command 'olive-run' is .*; pip install edgekit-olive$"):
        plugin.build([]).find("commands", "olive-run")
    with pytest.raises(MissingPluginError, match=r"no pass 'olive:Rtn' is .*; pip install 'edgekit-olive\[olive\]'$"):
        plugin.build([]).find("passes", "olive:Rtn")


def test_a_missing_name_invents_no_distribution():
    for role, name in (("formats", "gguf-nope"), ("runtimes", "cuda"), ("commands", "launch")):
        with pytest.raises(MissingPluginError) as told:
            plugin.build([]).find(role, name)
        assert "install edgekit" not in str(told.value)
        assert "(available: " in str(told.value)


@pytest.mark.parametrize(
    ("role", "name", "ending"),
    [
        ("runtimes", "num.py", "(available: numpy); did you mean 'numpy'?"),
        ("runtimes", "NumPi", "(available: numpy); did you mean 'numpy'?"),
        ("runtimes", "llama.cpp", "; did you mean 'llamacpp'? pip install edgekit-llamacpp"),
        ("formats", "G-GUF", "; did you mean 'gguf'? pip install edgekit-gguf"),
        ("formats", "safetensors", "; did you mean 'hf'?"),
        ("runtimes", "cuda", "(available: numpy)"),
    ],
)
def test_a_name_of_other_punctuation_is_understood(role, name, ending):
    with pytest.raises(MissingPluginError) as told:
        plugin.build([]).find(role, name)
    assert str(told.value).endswith(ending)


def test_near_names():
    known = ["Q4_K_M", "Q4_K_S", "Q8_0", "IQ4_XS"]
    assert near_names("q4km", known) == ["Q4_K_M", "Q4_K_S"]
    assert near_names("Q4-K-M", known, 1) == ["Q4_K_M"]
    assert near_names("float", known) == []
    assert near_names("Q4_K", known, alike=1.0) == []


@pytest.mark.parametrize(("count", "text"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows")])
def test_one_stands_in_the_singular(count, text):
    assert counted(count, "row") == text


def test_what_is_installed_and_broken_is_not_to_be_installed_again():
    broken = plugin.PluginInfo("gguf", "edgekit-gguf", "1", status="failed", error="ImportError: no gguf")
    with pytest.raises(MissingPluginError) as told:
        plugin.Manager([broken]).find("formats", "gguf")
    assert str(told.value) == (
        "no format 'gguf' is installed (available: none); not loaded: edgekit-gguf (ImportError: no gguf)"
    )


def test_a_target_that_does_not_import_names_its_distribution(make):
    manager = plugin.build([make("one", recipes("R", target="edgekit_nowhere:thing"))])
    with pytest.raises(PluginError, match=r"recipe 'R' of edgekit-one cannot be loaded: ModuleNotFoundError"):
        manager.load("recipes", "R")


@pytest.mark.parametrize("target", ["no_colon", 3, "two:colons:here", "a module:Name", "module:", ":Name", "m..n:Name"])
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
    assert manager.plugins[-1].error == "it writes to stdout when it is imported; report this to its authors"


def test_an_object_that_lacks_its_roles_methods_is_named(make):
    manager = plugin.build([make("one", recipes("R", target="json:JSONDecoder"))])
    with pytest.raises(PluginError) as caught:
        manager.load("recipes", "R")
    assert str(caught.value) == (
        "recipe 'R' of edgekit-one lacks name, plan; "
        "the docstring of edgekit_register_recipes names what it must implement"
    )


def registering(role, name, target, **options):
    """Fills a module with one hook that registers one thing."""

    def fill(module):
        def hook(register):
            register(name, target, **options)

        hook.__name__ = f"edgekit_register_{role}"
        setattr(module, hook.__name__, edgekit.hookimpl(hook))

    return fill


#: role, options, and the whole error.
STRICT = [
    (
        "formats", {"sufixes": (".x",)},
        "format 'X' of edgekit-one: unknown option 'sufixes', did you mean 'suffixes'?; "
        "edgekit_register_formats has suffixes, takes, refines",
    ),
    (
        "formats", {"suffixes": ".x"},
        "format 'X' of edgekit-one: suffixes='.x': takes a tuple of suffixes, such as (\".gguf\",)",
    ),
    (
        "formats", {"suffixes": ("x",)},
        "format 'X' of edgekit-one: suffixes=('x',): 'x' is not a suffix; a suffix is one dot and a name, "
        "as pathlib's Path.suffix",
    ),
    (
        "formats", {"takes": (".tar.gz",)},
        "format 'X' of edgekit-one: takes=('.tar.gz',): '.tar.gz' is not a suffix; a suffix is one dot and a name, "
        "as pathlib's Path.suffix",
    ),
    (
        "runtimes", {"formats": "gguf"},
        "runtime 'X' of edgekit-one: formats='gguf': takes a tuple of names, such as (\"gguf\",) or (\"*\",)",
    ),
    ("passes", {"formats": ("",)}, "pass 'X' of edgekit-one: formats=('',): has an empty name"),
    *(
        (
            "runtimes", {"speed": speed},
            f"runtime 'X' of edgekit-one: speed={speed!r}: takes a number from 0 on, where the reference has 1",
        )
        for speed in ("10", -1, True, None, float("nan"), float("inf"))
    ),
    (
        "runtimes", {"tolerance": 0},
        "runtime 'X' of edgekit-one: tolerance=0: takes a number above 0, in standard deviations of the logits",
    ),
    (
        "runtimes", {"parallel": 8},
        "runtime 'X' of edgekit-one: parallel=8: takes the name of one of the runtime's options",
    ),
    (
        "quantizers", {"claim": "exact", "sped": 10},
        "quantizer 'X' of edgekit-one: unknown option 'sped', did you mean 'speed'?; "
        "edgekit_register_quantizers has claim, speed",
    ),
    (
        "quantizers", {"claim": True},
        "quantizer 'X' of edgekit-one: claim=True: takes \"exact\", or a sentence that states the bound",
    ),
    (
        "quantizers", {},
        "quantizer 'X' of edgekit-one: it states no claim; register it with claim=\"exact\", or a sentence with its bound",
    ),
    (
        "devices", {"speed": 1},
        "device 'X' of edgekit-one: unknown option 'speed'; edgekit_register_devices has no options",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("role", "options", "error"), STRICT, ids=lambda value: str(value)[:30])
def test_registration_is_strict(make, role, options, error):
    info = plugin.build([make("one", registering(role, "X", "json:loads", **options))]).plugins[-1]
    assert (info.status, info.error) == ("failed", error)


@pytest.mark.parametrize("name", ["", " ", None, 3])
def test_a_name_is_a_text(make, name):
    info = plugin.build([make("one", registering("formats", name, "json:loads"))]).plugins[-1]
    assert info.error == f"a format of edgekit-one: its name is {name!r}; a name is a non-empty string"


def test_lists_are_taken_as_tuples(make):
    manager = plugin.build([make("one", registering("formats", "x", "json:loads", suffixes=[".x"]))])
    assert manager.find("formats", "x").options == {"suffixes": (".x",)}


@pytest.mark.parametrize("verb", ["quantize", "new-plugin", "doctor"])
def test_a_command_of_the_core_cannot_be_taken(make, verb):
    info = plugin.build([make("thief", registering("commands", verb, "json:loads"))]).plugins[-1]
    assert info.status == "failed"
    assert info.error == f"it would replace edgekit's own command {verb!r}; built-ins cannot be shadowed, rename it"


def test_the_core_registers_the_verbs_of_its_command_line():
    from edgekit.cli import VERBS

    manager = plugin.build([])
    assert sorted(VERBS) == sorted(r.name for r in manager.all("commands"))
    assert all(manager.load("commands", verb).name == verb for verb in VERBS)


class Encoder:
    """A quantizer that says what it encodes, and what it claims."""

    precision = "affine:int4-sym-g32"
    claim = "a bound"
    traits = Traits()

    def encode(self, x, importance=None):
        return {}


@pytest.mark.parametrize(
    ("role", "name", "options", "error"),
    [
        (
            "quantizers", "affine:int4-sym-g32", {"claim": "exact"},
            "is registered with claim='exact', and {target} has claim = 'a bound'; state one claim in both places",
        ),
        (
            "quantizers", "affine:int8-sym-g32", {"claim": "a bound"},
            "({target}) calls itself 'affine:int4-sym-g32'; register it under that name",
        ),
        ("recipes", "Q", {}, "(edgekit.pipeline:AsIs) calls itself 'as is'; register it under that name"),
    ],
)  # fmt: skip
def test_an_object_that_contradicts_its_registration_is_named(make, monkeypatch, role, name, options, error):
    holder = types.ModuleType("edgekit_test_holder")
    holder.Encoder = Encoder
    monkeypatch.setitem(sys.modules, holder.__name__, holder)
    target = "edgekit.pipeline:AsIs" if role == "recipes" else "edgekit_test_holder:Encoder"
    manager = plugin.build([make("one", registering(role, name, target, **options))])
    with pytest.raises(PluginError) as caught:
        manager.load(role, name)
    assert str(caught.value) == f"{role[:-1]} {name!r} of edgekit-one {error.format(target=target)}"


@pytest.mark.parametrize("name", ["ggml:Q4_0", "Q4_0"])
def test_a_quantizer_may_be_registered_under_its_bare_name(make, monkeypatch, name):
    holder = types.ModuleType("edgekit_test_holder")
    holder.Bare = type("Bare", (Encoder,), {"precision": "ggml:Q4_0"})
    plugin._load.cache_clear()  # a module of the same name has been loaded before
    monkeypatch.setitem(sys.modules, holder.__name__, holder)
    fill = registering("quantizers", name, "edgekit_test_holder:Bare", claim="a bound")
    assert isinstance(plugin.build([make("one", fill)]).load("quantizers", name), holder.Bare)


def test_what_hangs_or_does_not_load_is_warned_of_once_and_never_printed(caplog, capfd, monkeypatch):
    monkeypatch.setattr(plugin, "LOAD_SECONDS", 0.01)
    ended = threading.Event()
    with pytest.raises(PluginError, match=r"importing it did not end within 0\.01 s"):
        plugin._in_time(ended.wait, "slow")
    ended.set()
    registration = plugin.Registration("quantizers", "ggml:Q8_0", "m:n", "warned_once", "edgekit-warned-once")
    for _ in range(2):
        plugin.skipped(registration, PluginError("it does not load"))
    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "edgekit",
            "WARNING",
            "plugin 'slow' is skipped: importing it did not end within 0.01 s; EDGEKIT_NO_PLUGINS=slow switches it off",
        ),
        ("edgekit", "WARNING", "warned_once is skipped: it does not load"),
    ]
    assert capfd.readouterr() == ("", "")


def test_the_command_line_shows_warnings_on_stderr(capsys):
    with log_on_stderr():
        logging.getLogger("edgekit").warning("%s is skipped", "it")
        logging.getLogger("edgekit.numba").warning("compiled")
        logging.getLogger("edgekit").info("a note")
    logging.getLogger("edgekit").warning("after the command")
    assert capsys.readouterr() == ("", "edgekit: it is skipped\nedgekit-numba: compiled\n")
