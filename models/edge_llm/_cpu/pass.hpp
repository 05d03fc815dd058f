// A pass: a token, or a piece of a prompt, through all layers, by threads that stay together.
//
// Rows of a matrix are divided among the threads in contiguous shares. What comes between two matrices (norms, quantising,
// merging the parts of attention) every thread does for itself when it is one token, for another barrier would take
// longer; in a prompt it is divided by tokens. The order of every sum is the same with any number of threads.
//
// Letters: T tokens of the piece, D head size, R query heads of a KV head, M rows of queries.
#pragma once

#include "model.hpp"

namespace edge {

class Pass {
  public:
    Pass(Model& model, int me, int threads)
        : m_(model), at_(model.at), bench_(*model.benches[me]), me_(me), threads_(threads) {}

    // T tokens (at most PIECE) from a position on; the logits of the last one, unless they are null.
    void run(const int32_t* tokens, int T, int position, float* logits) {
        float *x = m_.x.floats(), *qkv = m_.qkv.floats(), *hidden = m_.hidden.floats();
        const int wide = m_.qkv_rows, attention = at_.heads * at_.head_dim;
        const Matrix* matrix = m_.matrices.data();
        const float* norm = m_.norms.data();
        const auto add = [&](int unit, int t, const float* sums) {
            float* row = stream(t) + unit * WIDTH;
            store(row, load(row) + load(sums));
        };
        for (int t = me_; t < T; t += threads_)
            m_.format->unpack_row(m_.embedding + tokens[t] * m_.embedding_stride, at_.dim, stream(t));
        barrier();
        for (int layer = 0; layer < at_.layers; ++layer, matrix += MATRICES, norm += 2 * at_.dim) {
            const uint8_t* a = stage(T, at_.dim, [&](int t) { return normed(stream(t), norm); });
            multiply<1>(matrix[0], a, T, [&](int unit, int t, const float* sums) {
                store(qkv + size_t(t) * wide + unit * WIDTH, load(sums));
            });
            barrier();
            if (T == 1) {
                attend_one(layer, position);
                barrier();
                a = stage(T, attention, [&](int) { return merged(position / CHUNK + 1); });
            } else {
                attend_many(layer, T, position);
                a = stage(T, attention, [&](int t) { return m_.mixed.floats() + size_t(t) * m_.q_rows; });
            }
            multiply<1>(matrix[1], a, T, add);
            barrier();
            a = stage(T, at_.dim, [&](int t) { return normed(stream(t), norm + at_.dim); });
            multiply<2>(matrix[2], a, T, [&](int unit, int t, const float* sums) {
                const Vector gate = load(sums), up = load(sums + GROUP * WIDTH);
                const Vector swish = gate / (all(1) + exp2(gate * all(-LOG2_E)));
                store(hidden + size_t(t) * m_.hidden_rows + unit * WIDTH, swish * up);
            });
            barrier();
            a = stage(T, at_.hidden, [&](int t) { return hidden + size_t(t) * m_.hidden_rows; });
            multiply<1>(matrix[3], a, T, add);
            barrier();
        }
        if (!logits) return;
        const uint8_t* a = stage(1, at_.dim, [&](int) { return normed(x + size_t(T - 1) * m_.dim_rows, norm); });
        multiply<1>(matrix[0], a, 1, [&](int unit, int, const float* sums) {
            std::copy(sums, sums + std::min(WIDTH, at_.vocabulary - unit * WIDTH), logits + unit * WIDTH);
        });
    }

  private:
    void barrier() { m_.gate.wait(threads_); }

    float* stream(int t) const { return m_.x.floats() + size_t(t) * m_.dim_rows; }

    // T rows as the activations of a matrix.
    template <class Row>
    const uint8_t* stage(int T, int columns, Row row) {
        const size_t bytes = m_.format->activation_bytes(columns);
        uint8_t* to = T == 1 ? bench_.activations() : m_.activations.bytes();
        const Share mine = T == 1 ? Share(1, 0, 1) : Share(T, me_, threads_);
        for (int t = mine.first; t < mine.last; ++t) {
            const int start = t / GROUP * GROUP;
            m_.format->prepare(row(t), columns, to + start * bytes, t - start, std::min(GROUP, T - start));
        }
        if (T > 1) barrier();
        return to;
    }

    // My rows of a matrix, times T tokens: finish(unit, token, sums [TILES][GROUP][WIDTH] from this token on).
    template <int TILES, class Finish>
    void multiply(const Matrix& matrix, const uint8_t* activations, int T, Finish finish) {
        alignas(64) float sums[TILES][GROUP * WIDTH];
        const size_t bytes = m_.format->activation_bytes(matrix.columns);
        const Share mine(matrix.units, me_, threads_);
        for (int unit = mine.first; unit < mine.last; ++unit)
            for (int start = 0; start < T; start += GROUP) {
                const int n = std::min(GROUP, T - start);
                for (int i = 0; i < TILES; ++i)
                    m_.format->multiply(m_.unit(matrix, unit) + i * matrix.tile_bytes, matrix.columns,
                                        activations + start * bytes, n, sums[i]);
                for (int t = 0; t < n; ++t) finish(unit, start + t, sums[0] + t * WIDTH);
            }
    }

    const float* normed(const float* x, const float* norm) {
        Vector squares = Vector{};
        for (int i = 0; i < m_.dim_rows; i += WIDTH) squares += load(x + i) * load(x + i);
        const float factor = 1 / std::sqrt(sum_of(squares) / at_.dim + at_.norm_eps);
        for (int i = 0; i < at_.dim; ++i) bench_.row[i] = x[i] * factor * norm[i];
        return bench_.row;
    }

    void rotate(const float* from, int position, float factor, float* to) const {
        const float* angle = m_.angles.data() + size_t(position) * at_.head_dim;
        for (int i = 0; i < at_.head_dim; i += 2) {
            to[i] = (from[i] * angle[i] - from[i + 1] * angle[i + 1]) * factor;
            to[i + 1] = (from[i] * angle[i + 1] + from[i + 1] * angle[i]) * factor;
        }
    }

    void remember(int layer, int head, int t, int position) {
        const float* key = m_.qkv.floats() + size_t(t) * m_.qkv_rows + m_.q_rows + head * at_.head_dim;
        rotate(key, position + t, 1, bench_.row);
        m_.cache->write(layer, head, position + t, bench_.row, key + m_.kv_rows);
    }

    // The queries of ``count`` tokens from t on of a KV head, against chunks [first, last).
    void attend(int layer, int head, int t, int count, int position, int first, int last, float* sums, float* largest) {
        const int D = at_.head_dim, M = count * m_.R;
        const float factor = LOG2_E / std::sqrt(float(D));
        for (int r = 0; r < M; ++r) {
            const int token = t + r / m_.R;
            const float* q = m_.qkv.floats() + size_t(token) * m_.qkv_rows + (head * m_.R + r % m_.R) * D;
            rotate(q, position + token, factor, bench_.q + r * D);
            bench_.seen[r] = position + token + 1;
            largest[r] = MASKED, largest[M + r] = 0;
        }
        std::memset(sums, 0, sizeof(float) * M * m_.padded_D);
        const Rows rows{M, bench_.q, bench_.seen, largest, largest + M, sums, bench_.scores, bench_.weights, bench_.keep};
        for (int chunk = first; chunk < last; ++chunk) m_.cache->attend(layer, head, chunk, rows);
    }

    // One token: pairs of a head and a chunk, divided among the threads.
    void attend_one(int layer, int position) {
        const int used = position / CHUNK + 1;
        const Share mine(at_.kv_heads * used, me_, threads_);
        for (int i = mine.first; i < mine.last; ++i) {
            const int head = i / used, chunk = i % used;
            float* part = m_.part(head, chunk);
            if (chunk == used - 1) remember(layer, head, 0, position);
            attend(layer, head, 0, 1, position, chunk, chunk + 1, part, part + m_.R * m_.padded_D);
        }
    }

    // Their sums as one, over ``used`` chunks: the heads' outputs [heads][D].
    const float* merged(int used) {
        const int D = at_.head_dim, R = m_.R;
        for (int h = 0; h < at_.heads; ++h) {
            const int head = h / R, r = h % R;
            float* out = bench_.row + h * D;
            float largest = MASKED, total = 0;
            for (int c = 0; c < used; ++c) largest = std::max(largest, m_.part(head, c)[R * m_.padded_D + r]);
            std::memset(out, 0, sizeof(float) * D);
            for (int c = 0; c < used; ++c) {
                const float* part = m_.part(head, c);
                const float weight = std::exp2(part[R * m_.padded_D + r] - largest);
                total += weight * part[R * (m_.padded_D + 1) + r];
                for (int i = 0; i < D; ++i) out[i] += weight * part[r * m_.padded_D + i];
            }
            for (int i = 0; i < D; ++i) out[i] /= total;
        }
        return bench_.row;
    }

    // A piece of a prompt: blocks of tokens of a KV head; the later ones, which see more, come first.
    void attend_many(int layer, int T, int position) {
        const Share mine(T, me_, threads_);
        for (int head = 0; head < at_.kv_heads; ++head)
            for (int t = mine.first; t < mine.last; ++t) remember(layer, head, t, position);
        barrier();
        const int tokens = MAX_ROWS / m_.R, blocks = (T + tokens - 1) / tokens, D = at_.head_dim;
        for (int i; (i = m_.next.fetch_add(1, std::memory_order_relaxed)) < blocks * at_.kv_heads;) {
            const int head = i % at_.kv_heads, t = (blocks - 1 - i / at_.kv_heads) * tokens;
            const int count = std::min(tokens, T - t), M = count * m_.R;
            attend(layer, head, t, count, position, 0, (position + t + count - 1) / CHUNK + 1, bench_.sums, bench_.largest);
            for (int r = 0; r < M; ++r) {
                float* out = m_.mixed.floats() + size_t(t + r / m_.R) * m_.q_rows + (head * m_.R + r % m_.R) * D;
                for (int j = 0; j < D; ++j) out[j] = bench_.sums[r * m_.padded_D + j] / bench_.largest[M + r];
            }
        }
        barrier();
        if (me_ == 0) m_.next = 0;
    }

    Model& m_;
    const Sizes& at_;
    Bench& bench_;
    const int me_, threads_;
};

}  // namespace edge
