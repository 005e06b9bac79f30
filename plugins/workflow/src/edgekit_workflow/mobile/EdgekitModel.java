package com.example.edgekit;

import java.io.IOException;
import java.nio.charset.StandardCharsets;

/** A GGUF model, run with llama.cpp. Texts are computed one after the other; call it from a thread of its own. */
public final class EdgekitModel implements AutoCloseable {
    static {
        System.loadLibrary("edgekit_model");
    }

    private long model;

    /**
     * Loads a model.
     *
     * @param path of the file
     * @param context tokens of a prompt and of what follows it
     * @param threads that compute
     * @throws IOException the model cannot be loaded; the log has the reason
     */
    public EdgekitModel(String path, int context, int threads) throws IOException {
        model = open(path.getBytes(StandardCharsets.UTF_8), context, threads);
        if (model == 0) {
            throw new IOException(path + ": the model cannot be loaded; the log has the reason");
        }
    }

    /**
     * Continues a prompt, greedily, until an end token.
     *
     * @param prompt the text
     * @param maxTokens the most tokens that follow
     * @return what follows
     * @throws IllegalArgumentException the prompt is empty, or does not fit the context with what is to follow
     */
    public synchronized String generate(String prompt, int maxTokens) {
        if (model == 0) {
            throw new IllegalStateException("the model is closed");
        }
        byte[] text = generate(model, prompt.getBytes(StandardCharsets.UTF_8), maxTokens);
        if (text == null) {
            throw new IllegalArgumentException("the prompt is empty, or too long for the context");
        }
        return new String(text, StandardCharsets.UTF_8);
    }

    @Override
    public synchronized void close() {
        if (model != 0) {
            close(model);
            model = 0;
        }
    }

    private static native long open(byte[] path, int context, int threads);

    private static native byte[] generate(long model, byte[] prompt, int maxTokens);

    private static native void close(long model);
}
