// swift-tools-version: 5.9
import PackageDescription

let package = Package(
    name: "EdgekitModel",
    platforms: [.iOS(.v16), .macOS(.v13)],
    products: [.library(name: "EdgekitModel", targets: ["EdgekitModel"])],
    targets: [
        .binaryTarget(name: "llama", path: "llama.xcframework"),
        .target(name: "CEdgekitModel", dependencies: ["llama"]),
        .target(name: "EdgekitModel", dependencies: ["CEdgekitModel"], resources: [.copy("model.gguf")]),
    ],
    cxxLanguageStandard: .cxx17
)
