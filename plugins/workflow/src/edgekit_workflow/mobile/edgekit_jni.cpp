/* The bridge from com.example.edgekit.EdgekitModel; texts cross it as bytes in UTF-8. */
#include "edgekit_model.h"

#include <cstring>
#include <jni.h>
#include <string>

static std::string text_of(JNIEnv *env, jbyteArray bytes) {
    std::string text(env->GetArrayLength(bytes), '\0');
    env->GetByteArrayRegion(bytes, 0, static_cast<jsize>(text.size()), reinterpret_cast<jbyte *>(text.data()));
    return text;
}

extern "C" {

JNIEXPORT jlong JNICALL Java_com_example_edgekit_EdgekitModel_open(
    JNIEnv *env, jclass, jbyteArray path, jint context, jint threads) {
    return reinterpret_cast<jlong>(edgekit_open(text_of(env, path).c_str(), context, threads));
}

JNIEXPORT jbyteArray JNICALL Java_com_example_edgekit_EdgekitModel_generate(
    JNIEnv *env, jclass, jlong model, jbyteArray prompt, jint max_tokens) {
    char *text = edgekit_generate(reinterpret_cast<edgekit_model *>(model), text_of(env, prompt).c_str(), max_tokens);
    if (text == nullptr) {
        return nullptr;
    }
    const jsize length = static_cast<jsize>(std::strlen(text));
    jbyteArray bytes = env->NewByteArray(length);
    if (bytes != nullptr) {
        env->SetByteArrayRegion(bytes, 0, length, reinterpret_cast<const jbyte *>(text));
    }
    edgekit_free_text(text);
    return bytes;
}

JNIEXPORT void JNICALL Java_com_example_edgekit_EdgekitModel_close(JNIEnv *, jclass, jlong model) {
    edgekit_close(reinterpret_cast<edgekit_model *>(model));
}
}
