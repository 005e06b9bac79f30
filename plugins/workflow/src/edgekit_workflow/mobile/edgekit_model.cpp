#include "edgekit_model.h"

#if __has_include(<llama/llama.h>) /* a framework for Apple's systems */
#include <llama/llama.h>
#else
#include "llama.h"
#endif

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

struct edgekit_model {
    llama_model *model;
    llama_context *context;
};

edgekit_model *edgekit_open(const char *path, int context, int threads) {
    llama_backend_init();
    llama_model *model = llama_model_load_from_file(path, llama_model_default_params());
    if (model == nullptr) {
        return nullptr;
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx = context;
    params.n_threads = params.n_threads_batch = threads;
    llama_context *made = llama_init_from_model(model, params);
    if (made == nullptr) {
        llama_model_free(model);
        return nullptr;
    }
    return new edgekit_model{model, made};
}

static std::vector<llama_token> tokenized(const llama_vocab *vocab, const char *text) {
    const int length = static_cast<int>(std::strlen(text));
    std::vector<llama_token> tokens(std::max(0, -llama_tokenize(vocab, text, length, nullptr, 0, true, true)));
    llama_tokenize(vocab, text, length, tokens.data(), static_cast<int>(tokens.size()), true, true);
    return tokens;
}

static bool decoded(llama_context *context, llama_token *tokens, int count) {
    const int batch = static_cast<int>(llama_n_batch(context));
    for (int start = 0; start < count; start += batch) {
        if (llama_decode(context, llama_batch_get_one(tokens + start, std::min(batch, count - start))) != 0) {
            return false;
        }
    }
    return true;
}

static std::string piece(const llama_vocab *vocab, llama_token token) {
    std::string text(256, '\0');
    const int length = llama_token_to_piece(vocab, token, text.data(), static_cast<int>(text.size()), 0, false);
    if (length < 0) { /* a longer one: its length, negative */
        text.resize(-length);
        llama_token_to_piece(vocab, token, text.data(), static_cast<int>(text.size()), 0, false);
        return text;
    }
    text.resize(length);
    return text;
}

char *edgekit_generate(edgekit_model *self, const char *prompt, int max_tokens) {
    const llama_vocab *vocab = llama_model_get_vocab(self->model);
    std::vector<llama_token> tokens = tokenized(vocab, prompt);
    const int count = static_cast<int>(tokens.size());
    if (count < 1 || max_tokens < 0 || count > static_cast<int>(llama_n_ctx(self->context)) - max_tokens) {
        return nullptr;
    }
    llama_memory_clear(llama_get_memory(self->context), true);
    llama_sampler *sampler = llama_sampler_init_greedy();
    std::string text;
    bool well = decoded(self->context, tokens.data(), count);
    for (int made = 0; well && made < max_tokens; made++) {
        llama_token token = llama_sampler_sample(sampler, self->context, -1);
        if (llama_vocab_is_eog(vocab, token)) {
            break;
        }
        text += piece(vocab, token);
        well = made + 1 == max_tokens || decoded(self->context, &token, 1);
    }
    llama_sampler_free(sampler);
    if (!well) {
        return nullptr;
    }
    char *copy = static_cast<char *>(std::malloc(text.size() + 1));
    if (copy != nullptr) {
        std::memcpy(copy, text.c_str(), text.size() + 1);
    }
    return copy;
}

void edgekit_free_text(char *text) { std::free(text); }

void edgekit_close(edgekit_model *self) {
    llama_free(self->context);
    llama_model_free(self->model);
    delete self;
}
