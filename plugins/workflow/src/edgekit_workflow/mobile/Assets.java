package com.example.edgekit;

import android.content.Context;
import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.StandardCopyOption;

/** The model in the app's assets, as a file that llama.cpp can map: copied once, whole or not at all. */
public final class Assets {
    private Assets() {}

    /** Returns the model's file, of the app's version. */
    public static File model(Context context) throws IOException {
        File file = new File(context.getNoBackupFilesDir(), "model-@DIGEST@.gguf");
        if (!file.exists()) {
            File part = new File(file.getPath() + ".part");
            try (InputStream asset = context.getAssets().open("model.gguf")) {
                Files.copy(asset, part.toPath(), StandardCopyOption.REPLACE_EXISTING);
            }
            Files.move(part.toPath(), file.toPath(), StandardCopyOption.ATOMIC_MOVE);
        }
        return file;
    }
}
