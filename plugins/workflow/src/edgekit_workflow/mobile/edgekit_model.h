/* A GGUF model, run with llama.cpp: one text at a time, from one thread at a time. */
#ifndef EDGEKIT_MODEL_H
#define EDGEKIT_MODEL_H

#ifdef __cplusplus
extern "C" {
#endif

struct edgekit_model;

/* Loads a model for texts of at most `context` tokens; NULL if that fails, for which llama.cpp logs the reason. */
struct edgekit_model *edgekit_open(const char *path, int context, int threads);

/* Continues a prompt in UTF-8, greedily, until an end token or `max_tokens`. The text is freed with edgekit_free_text;
   NULL if the prompt is empty, does not fit the context with what is to follow, or cannot be computed. */
char *edgekit_generate(struct edgekit_model *model, const char *prompt, int max_tokens);

void edgekit_free_text(char *text);
void edgekit_close(struct edgekit_model *model);

#ifdef __cplusplus
}
#endif
#endif
