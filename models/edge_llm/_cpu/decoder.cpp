// A Llama decoder for CPUs, as C functions: a model is made, filled and driven.

#include <omp.h>

#include "pass.hpp"

namespace {

edge::Model& model(void* decoder) { return *static_cast<edge::Model*>(decoder); }

}  // namespace

// Null where memory ran out.
extern "C" void* archbench_edge_new(const edge::Sizes* sizes) {
    try {
        return new edge::Model(*sizes);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

extern "C" void archbench_edge_free(void* decoder) { delete static_cast<edge::Model*>(decoder); }

// Rows [count][stride bytes] of a part of a layer, as GGUF has them; layer ``layers`` is the vocabulary. Copied.
extern "C" void archbench_edge_matrix(void* decoder, int layer, int part, const uint8_t* raw, int64_t stride, int count) {
    model(decoder).pack(layer, part, raw, stride, count);
}

// Norm i [dim]: attention's and the feed-forward block's of each layer, then the last. Copied.
extern "C" void archbench_edge_norm(void* decoder, int i, const float* values) {
    edge::Model& to = model(decoder);
    std::copy(values, values + to.at.dim, to.norms.begin() + int64_t(i) * to.at.dim);
}

// The embedding as GGUF has it. Kept: it outlives the decoder.
extern "C" void archbench_edge_embedding(void* decoder, const uint8_t* raw, int64_t stride) {
    model(decoder).embedding = raw;
    model(decoder).embedding_stride = stride;
}

// Evaluate tokens [count] from a position on; position + count is within the capacity. The last one's logits [vocabulary].
// Returns 0, or 1 where a token is not of the vocabulary.
extern "C" int archbench_edge_step(void* decoder, const int32_t* tokens, int count, int position, float* logits) {
    edge::Model& with = model(decoder);
    for (int t = 0; t < count; ++t)
        if (tokens[t] < 0 || tokens[t] >= with.at.vocabulary) return 1;
#pragma omp parallel num_threads(with.at.threads)
    {
        edge::Pass pass(with, omp_get_thread_num(), omp_get_num_threads());
        for (int done = 0; done < count; done += edge::PIECE)
            pass.run(tokens + done, std::min(edge::PIECE, count - done), position + done,
                     count - done <= edge::PIECE ? logits : nullptr);
    }
    return 0;
}
