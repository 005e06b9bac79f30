plugins {
    id("com.android.library")
}

android {
    namespace = "com.example.edgekit"
    compileSdk = 35

    defaultConfig {
        minSdk = 28
        ndk {
            abiFilters += "arm64-v8a"
        }
    }
    androidResources {
        noCompress += "gguf"
    }
    externalNativeBuild {
        cmake {
            path = file("src/main/cpp/CMakeLists.txt")
        }
    }
}
