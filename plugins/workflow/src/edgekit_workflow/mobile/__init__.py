"""Packages for phones and tablets: a GGUF model with the code that runs it with llama.cpp, for Xcode and for Gradle.

    ios       a Swift package: the model as its resource, a C++ target, a Swift class; needs llama.cpp's XCFramework
    android   a Gradle library module: the model as an asset, a C++ library with JNI, a Java class; CMake gets llama.cpp

The C++ and the Java code are compiled and run in the tests, on a desktop (`tests/oracles/test_workflow_mobile.py`).
Xcode, Gradle and the devices are not run here.

Sources: ``llama.h``; github.com/ggml-org/llama.cpp, ``build-xcframework.sh`` and ``docs/android.md``; swift.org,
"PackageDescription"; developer.android.com, "Add C and C++ code to your project", "Support 16 KB page sizes".
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from edgekit.artifact import Artifact
from edgekit.errors import UsageError
from edgekit.files.digests import sha256
from edgekit.pipeline.packaging import Package
from edgekit_workflow.packaging import one_gguf, write_package

NOT_RUN = "not run here: Xcode, Gradle and the devices; the C++ and the Java code are compiled and run in the tests"
_NATIVE = ("edgekit_model.h", "edgekit_model.cpp")


class Ios:
    """A Swift package for iOS and macOS; see `edgekit.pipeline.packaging.Packager`."""

    name = "ios"

    def package(self, source: Artifact, to: Path) -> Package:
        """Write the Swift package.

        Args:
            source: a GGUF file.
            to: the directory.

        Raises:
            UnsupportedModelError: the source is no single GGUF file.
            UsageError: the target is not empty.
        """
        contents = {
            "Package.swift": _text("Package.swift"),
            "Sources/CEdgekitModel/edgekit_model.cpp": _text("edgekit_model.cpp"),
            "Sources/CEdgekitModel/include/edgekit_model.h": _text("edgekit_model.h"),
            "Sources/EdgekitModel/EdgekitModel.swift": _text("EdgekitModel.swift"),
        }
        copies = {"Sources/EdgekitModel/model.gguf": one_gguf(source, "the Swift package")}
        command = (
            "git clone --depth 1 https://github.com/ggml-org/llama.cpp && (cd llama.cpp && ./build-xcframework.sh) && "
            "cp -R llama.cpp/build-apple/llama.xcframework . && xcodebuild -scheme EdgekitModel -destination "
            "'generic/platform=iOS' build"
        )
        return write_package(self.name, to, copies, contents, command, NOT_RUN)


class Android:
    """A Gradle library module for Android; see `edgekit.pipeline.packaging.Packager`."""

    name = "android"

    def package(self, source: Artifact, to: Path, *, revision: str = "master") -> Package:
        """Write the Gradle module.

        Args:
            source: a GGUF file.
            to: the directory; a module of an app, to be named in its ``settings.gradle.kts``.
            revision: tag of llama.cpp to build with, such as ``b6500``.

        Raises:
            UnsupportedModelError: the source is no single GGUF file.
            UsageError: the revision is malformed, or the target is not empty.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,63}", revision):
            raise UsageError(f"revision {revision!r:.80}; give a tag or a branch of llama.cpp, such as b6500")
        model, java = one_gguf(source, "the Android module"), "src/main/java/com/example/edgekit"
        contents = {
            "build.gradle.kts": _text("build.gradle.kts"),
            "src/main/AndroidManifest.xml": _text("AndroidManifest.xml"),
            "src/main/cpp/CMakeLists.txt": _text("CMakeLists.txt").replace("@REVISION@", revision),
            **{f"src/main/cpp/{name}": _text(name) for name in (*_NATIVE, "edgekit_jni.cpp")},
            f"{java}/EdgekitModel.java": _text("EdgekitModel.java"),
            f"{java}/Assets.java": _text("Assets.java").replace("@DIGEST@", sha256(model)[:12]),
        }
        command = (
            "./gradlew :edgekit:assembleRelease  # in the app whose settings name this directory as the module edgekit"
        )
        return write_package(self.name, to, {"src/main/assets/model.gguf": model}, contents, command, NOT_RUN)


def _text(name: str) -> str:
    return resources.files("edgekit_workflow.mobile").joinpath(name).read_text("utf-8")


__all__ = ["NOT_RUN", "Android", "Ios"]
