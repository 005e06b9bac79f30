import CEdgekitModel
import Foundation

public enum EdgekitModelError: Error {
    /// The model is not in the bundle, or cannot be loaded; the log has the reason.
    case notLoaded
    /// The prompt is empty, or does not fit the context with what is to follow.
    case refused
}

/// A GGUF model in the package's bundle, run with llama.cpp. Texts are computed one at a time.
public actor EdgekitModel {
    private let model: OpaquePointer

    public init(context: Int32 = 2048, threads: Int32 = 4) throws {
        guard let url = Bundle.module.url(forResource: "model", withExtension: "gguf"),
            let opened = edgekit_open(url.path, context, threads)
        else { throw EdgekitModelError.notLoaded }
        model = opened
    }

    deinit {
        edgekit_close(model)
    }

    /// Continues a prompt, greedily, until an end token or so many tokens.
    public func generate(_ prompt: String, maxTokens: Int32 = 128) throws -> String {
        guard let text = edgekit_generate(model, prompt, maxTokens) else { throw EdgekitModelError.refused }
        defer { edgekit_free_text(text) }
        return String(decoding: UnsafeRawBufferPointer(start: text, count: strlen(text)), as: UTF8.self)
    }
}
