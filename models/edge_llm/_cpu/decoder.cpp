// A Llama model for CPUs: a token, or a prompt in pieces, in one parallel region.
//
// Phases of a layer: q, k and v as one matrix; attention; its output; gate and up as one matrix whose tiles alternate, so
// that the activation is applied where both are; down. Rows of a matrix are divided among the threads in contiguous
// shares. What comes between two matrices (norms, quantising, merging the parts of attention) is done by every thread for
// itself when it is one token, for another barrier would take longer, and divided by tokens in a prompt. While a thread
// waits, the beginning of its share of the next matrix is on its way.
//
// The order of every sum is the same with any number of threads.
// Letters: T tokens of a piece, D head size, R query heads of a KV head.

#include <omp.h>

#include <memory>
#include <vector>

#include "attention.hpp"
#include "matrices.hpp"
#include "team.hpp"

namespace {

using namespace edge;

constexpr int PIECE = 256;  // tokens of a prompt that go through a layer together
constexpr int MAX_HEAD_DIM = 256;
constexpr int WARM = 2048;  // bytes of the next matrix that are asked for before a barrier

struct Sizes {
    int32_t vocabulary, dim, layers, heads, kv_heads, head_dim, hidden, capacity, threads, weights, cache;
    float norm_eps, rope_theta;
};
enum { F32, F16, Q8_0, Q4_0 };                      // weights; a cache is one of the first three
enum { QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN };  // parts of a layer; of no layer: the vocabulary

struct Matrix {
    uint8_t* data;
    int columns, units;  // a unit is ``width`` tiles, whose rows belong together
    int width;
    size_t tile_bytes;
    uint8_t* unit(int i) const { return data + size_t(i) * width * tile_bytes; }
};

std::unique_ptr<Format> format_of(int weights) {
    switch (weights) {
        case F32: return std::make_unique<Plain<float>>();
        case F16: return std::make_unique<Plain<uint16_t>>();
        case Q8_0: return std::make_unique<Blocks<Q8>>();
        default: return std::make_unique<Blocks<Q4>>();
    }
}

std::unique_ptr<Cache> cache_of(const Sizes& s) {
    switch (s.cache) {
        case F32: return std::make_unique<CacheOf<float>>(s.layers, s.kv_heads, s.head_dim, s.capacity);
        case F16: return std::make_unique<CacheOf<uint16_t>>(s.layers, s.kv_heads, s.head_dim, s.capacity);
        default: return std::make_unique<CacheOf<int8_t>>(s.layers, s.kv_heads, s.head_dim, s.capacity);
    }
}

class Decoder {
  public:
    explicit Decoder(const Sizes& sizes)
        : at(sizes), R(at.heads / at.kv_heads), format(format_of(at.weights)), cache(cache_of(at)),
          kv_rows(round_up(at.kv_heads * at.head_dim, WIDTH)), q_rows(round_up(at.heads * at.head_dim, WIDTH)),
          dim_rows(round_up(at.dim, WIDTH)), hidden_rows(round_up(at.hidden, WIDTH)),
          widest(round_up(std::max({at.dim, at.hidden, at.heads * at.head_dim}), 64)),
          padded_D(round_up(at.head_dim, PAIR)), chunks((at.capacity + CHUNK - 1) / CHUNK),
          rows_floats(size_t(at.head_dim + 2 * CHUNK + 2 + padded_D + 2) * MAX_ROWS), norms(size_t(2 * at.layers + 1) * at.dim),
          x(size_t(PIECE) * dim_rows * 4), qkv(size_t(PIECE) * (q_rows + 2 * kv_rows) * 4),
          mixed(size_t(PIECE) * widest * 4), hidden(size_t(PIECE) * hidden_rows * 4),
          logits(size_t(round_up(at.vocabulary, WIDTH)) * 4), shared(format->activation_bytes(widest) * PIECE),
          partial(size_t(at.heads) * chunks * (padded_D + 2) * 4), angles(size_t(at.capacity) * at.head_dim * 4) {
        for (int i = 0; i < at.threads; ++i) {
            own.push_back(std::make_unique<Memory>(format->activation_bytes(widest)));
            rows.push_back(std::make_unique<Memory>(rows_floats * 4 + size_t(widest) * 4));
        }
        size_t bytes = 0;
        const int q_k_v = (q_rows + 2 * kv_rows) / WIDTH, attention = at.heads * at.head_dim;
        for (int layer = 0; layer < at.layers; ++layer) {
            matrices.push_back(place(bytes, q_k_v, at.dim, 1));
            matrices.push_back(place(bytes, dim_rows / WIDTH, attention, 1));
            matrices.push_back(place(bytes, hidden_rows / WIDTH, at.dim, 2));
            matrices.push_back(place(bytes, dim_rows / WIDTH, at.hidden, 1));
        }
        matrices.push_back(place(bytes, round_up(at.vocabulary, WIDTH) / WIDTH, at.dim, 1));
        weights = std::make_unique<Memory>(bytes, true);
        for (Matrix& m : matrices) m.data = weights->bytes() + reinterpret_cast<size_t>(m.data);
        for (int p = 0; p < at.capacity; ++p)
            for (int i = 0; i < at.head_dim / 2; ++i) {
                const double angle = p * std::pow(double(at.rope_theta), -2.0 * i / at.head_dim);
                float* place = angles.floats() + size_t(p) * at.head_dim + 2 * i;
                place[0] = float(std::cos(angle)), place[1] = float(std::sin(angle));
            }
    }

    void pack(int layer, int part, const uint8_t* raw, int64_t stride, int count) {
        const bool last = layer == at.layers;
        const int which = last ? 0 : part <= VALUE ? 0 : part == OUTPUT ? 1 : part <= UP ? 2 : 3;
        const Matrix& m = matrices[4 * layer + which];
        const int first = last || part == QUERY ? 0 : part == KEY ? q_rows / WIDTH : part == VALUE ? (q_rows + kv_rows) / WIDTH : part == UP;
#pragma omp parallel for num_threads(at.threads)
        for (int i = 0; i < (count + WIDTH - 1) / WIDTH; ++i)
            format->pack(raw + int64_t(i) * WIDTH * stride, stride, std::min(WIDTH, count - i * WIDTH), m.columns,
                         m.data + size_t(first + i * m.width) * m.tile_bytes);
    }

    void norm(int i, const float* values) { std::copy(values, values + at.dim, norms.data() + size_t(i) * at.dim); }
    void embedding(const uint8_t* raw, int64_t stride) { embeddings = raw, embedding_stride = stride; }
    float* result() const { return logits.floats(); }

    void step(const int32_t* tokens, int count, int position) {
#pragma omp parallel num_threads(at.threads)
        {
            Worker w{*this, omp_get_thread_num(), omp_get_num_threads()};
            for (int done = 0; done < count; done += PIECE) {
                const int T = std::min(PIECE, count - done);
                w.piece(tokens + done, T, position + done, done + T == count);
            }
        }
    }

  private:
    Matrix place(size_t& bytes, int units, int columns, int width) const {
        Matrix m{reinterpret_cast<uint8_t*>(bytes), columns, units, width, format->tile_bytes(columns)};
        bytes += (size_t(units) * width * m.tile_bytes + 63) / 64 * 64;
        return m;
    }

    struct Worker {
        Decoder& d;
        int me, threads;

        void barrier() { d.gate.wait(threads); }

        // Before a barrier, with what comes after it.
        void barrier(const Matrix& next) {
            const uint8_t* first = next.unit(Share(next.units, me, threads).first);
            for (int line = 0; line < WARM; line += 64) __builtin_prefetch(first + line);
            barrier();
        }

        float* own_row() { return d.rows[me]->floats() + d.rows_floats; }

        // Rows of T tokens as the activations of a matrix. Where it is one token, each thread makes them for itself.
        template <class Row>
        const uint8_t* stage(int T, int columns, Row row) {
            const size_t bytes = d.format->activation_bytes(columns);
            uint8_t* to = T == 1 ? d.own[me]->bytes() : d.shared.bytes();
            const Share mine = T == 1 ? Share(1, 0, 1) : Share(T, me, threads);
            for (int t = mine.first; t < mine.last; ++t) {
                const int start = t / GROUP * GROUP;
                d.format->prepare(row(t), columns, to + start * bytes, t - start, std::min(GROUP, T - start));
            }
            if (T > 1) barrier();
            return to;
        }

        const float* normed(const float* x, const float* norm) {
            Vector squares = Vector{};
            for (int i = 0; i < d.dim_rows; i += WIDTH) squares += load(x + i) * load(x + i);
            const Vector factor = all(1 / std::sqrt(sum_of(squares) / d.at.dim + d.at.norm_eps));
            float* out = own_row();
            int i = 0;
            for (; i + WIDTH <= d.at.dim; i += WIDTH) store(out + i, load(x + i) * factor * load(norm + i));
            for (; i < d.at.dim; ++i) out[i] = x[i] * factor[0] * norm[i];
            return out;
        }

        // My rows of a matrix, times T tokens: finish(unit, token, [width][WIDTH] sums).
        template <int TILES, class Finish>
        void multiply(const Matrix& m, const uint8_t* activations, int T, Finish finish) {
            alignas(64) float sums[TILES][GROUP * WIDTH];
            const size_t bytes = d.format->activation_bytes(m.columns);
            const Share mine(m.units, me, threads);
            for (int unit = mine.first; unit < mine.last; ++unit)
                for (int start = 0; start < T; start += GROUP) {
                    const int n = std::min(GROUP, T - start);
                    for (int i = 0; i < TILES; ++i)
                        d.format->multiply(m.unit(unit) + i * m.tile_bytes, m.columns, activations + start * bytes, n, sums[i]);
                    for (int t = 0; t < n; ++t) finish(unit, start + t, sums[0] + t * WIDTH);
                }
        }

        void rotate(const float* from, int position, float factor, float* to) const {
            const float* angle = d.angles.floats() + size_t(position) * d.at.head_dim;
            for (int i = 0; i < d.at.head_dim; i += 2) {
                to[i] = (from[i] * angle[i] - from[i + 1] * angle[i + 1]) * factor;
                to[i + 1] = (from[i] * angle[i + 1] + from[i + 1] * angle[i]) * factor;
            }
        }

        void remember(int layer, int head, int t, int position) {
            const int D = d.at.head_dim;
            const float* key = d.qkv.floats() + size_t(t) * (d.q_rows + 2 * d.kv_rows) + d.q_rows + head * D;
            rotate(key, position + t, 1, own_row());
            d.cache->write(layer, head, position + t, own_row(), key + d.kv_rows);
        }

        // count queries from token t of a KV head, R to a token, against chunks [first, last).
        void attend(int layer, int head, int t, int count, int position, int first, int last, float* sums, float* largest) {
            const int D = d.at.head_dim, M = count * d.R;
            float* q = d.rows[me]->floats();
            float *scores = q + size_t(MAX_ROWS) * D, *scaled = scores + MAX_ROWS * CHUNK;
            float* keep = scaled + MAX_ROWS * CHUNK;
            int* seen = reinterpret_cast<int*>(keep + MAX_ROWS);
            const float factor = LOG2_E / std::sqrt(float(D));
            for (int r = 0; r < M; ++r) {
                const int token = t + r / d.R;
                seen[r] = position + token + 1;
                rotate(d.qkv.floats() + size_t(token) * (d.q_rows + 2 * d.kv_rows) + (head * d.R + r % d.R) * D,
                       position + token, factor, q + r * D);
                largest[r] = MASKED, largest[M + r] = 0;
            }
            std::memset(sums, 0, sizeof(float) * M * d.padded_D);
            const Rows rows{M, q, seen, largest, largest + M, sums, scores, scaled, keep};
            for (int chunk = first; chunk < last; ++chunk) d.cache->attend(layer, head, chunk, rows);
        }

        // One token: parts of (head, chunk), each by one thread, and then each thread merges them for itself.
        float* part(int head, int chunk) const { return d.partial.floats() + size_t(head * d.chunks + chunk) * d.R * (d.padded_D + 2); }

        void attend_one(int layer, int position) {
            const int used = position / CHUNK + 1;
            const Share mine(d.at.kv_heads * used, me, threads);
            for (int i = mine.first; i < mine.last; ++i) {
                const int head = i / used, chunk = i % used;
                if (chunk == used - 1) remember(layer, head, 0, position);
                attend(layer, head, 0, 1, position, chunk, chunk + 1, part(head, chunk), part(head, chunk) + d.R * d.padded_D);
            }
        }

        const float* merged(int position) {
            const int used = position / CHUNK + 1, D = d.at.head_dim;
            float* out = own_row();
            for (int h = 0; h < d.at.heads; ++h) {
                const int head = h / d.R, r = h % d.R;
                float largest = MASKED, total = 0, sum[MAX_HEAD_DIM] = {};
                for (int c = 0; c < used; ++c) largest = std::max(largest, part(head, c)[d.R * d.padded_D + r]);
                for (int c = 0; c < used; ++c) {
                    const float* from = part(head, c);
                    const float weight = std::exp2(from[d.R * d.padded_D + r] - largest);
                    total += weight * from[d.R * (d.padded_D + 1) + r];
                    for (int i = 0; i < D; ++i) sum[i] += weight * from[r * d.padded_D + i];
                }
                for (int i = 0; i < D; ++i) out[h * D + i] = sum[i] / total;
            }
            return out;
        }

        // A prompt: blocks of tokens of a KV head, the later ones, which see more, first.
        void attend_many(int layer, int T, int position) {
            const Share mine(T, me, threads);
            for (int head = 0; head < d.at.kv_heads; ++head)
                for (int t = mine.first; t < mine.last; ++t) remember(layer, head, t, position);
            barrier();
            const int tokens = MAX_ROWS / d.R, blocks = (T + tokens - 1) / tokens, D = d.at.head_dim;
            float* sums = own_row() - size_t(MAX_ROWS) * (d.padded_D + 2);
            for (int i; (i = d.next.fetch_add(1, std::memory_order_relaxed)) < blocks * d.at.kv_heads;) {
                const int head = i % d.at.kv_heads, t = (blocks - 1 - i / d.at.kv_heads) * tokens;
                const int count = std::min(tokens, T - t), M = count * d.R;
                float* largest = sums + size_t(MAX_ROWS) * d.padded_D;
                attend(layer, head, t, count, position, 0, (position + t + count - 1) / CHUNK + 1, sums, largest);
                for (int r = 0; r < M; ++r) {
                    float* out = d.mixed.floats() + size_t(t + r / d.R) * d.widest + (head * d.R + r % d.R) * D;
                    for (int j = 0; j < D; ++j) out[j] = sums[r * d.padded_D + j] / largest[M + r];
                }
            }
            barrier();
            if (me == 0) d.next = 0;
        }

        void piece(const int32_t* tokens, int T, int position, bool wanted) {
            const int dim = d.at.dim, wide = d.q_rows + 2 * d.kv_rows;
            float *x = d.x.floats(), *qkv = d.qkv.floats(), *hidden = d.hidden.floats();
            const Matrix* m = d.matrices.data();
            for (int t = me; t < T; t += threads)
                d.format->unpack_row(d.embeddings + tokens[t] * d.embedding_stride, dim, x + size_t(t) * d.dim_rows);
            barrier(m[0]);
            const auto add = [&](int unit, int t, const float* sums) {
                float* row = x + size_t(t) * d.dim_rows + unit * WIDTH;
                store(row, load(row) + load(sums));
            };
            for (int layer = 0; layer < d.at.layers; ++layer, m += 4) {
                const float* norm = d.norms.data() + size_t(2 * layer) * dim;
                const uint8_t* a = stage(T, dim, [&](int t) { return normed(x + size_t(t) * d.dim_rows, norm); });
                multiply<1>(m[0], a, T, [&](int unit, int t, const float* sums) { store(qkv + size_t(t) * wide + unit * WIDTH, load(sums)); });
                barrier(m[1]);
                if (T == 1) {
                    attend_one(layer, position);
                    barrier(m[1]);
                    a = stage(T, d.at.heads * d.at.head_dim, [&](int) { return merged(position); });
                } else {
                    attend_many(layer, T, position);
                    a = stage(T, d.at.heads * d.at.head_dim, [&](int t) { return d.mixed.floats() + size_t(t) * d.widest; });
                }
                multiply<1>(m[1], a, T, add);
                barrier(m[2]);
                a = stage(T, dim, [&](int t) { return normed(x + size_t(t) * d.dim_rows, norm + dim); });
                multiply<2>(m[2], a, T, [&](int unit, int t, const float* sums) {
                    const Vector gate = load(sums), up = load(sums + GROUP * WIDTH);
                    store(hidden + size_t(t) * d.hidden_rows + unit * WIDTH, gate * up / (all(1) + exp2(gate * all(-LOG2_E))));
                });
                barrier(m[3]);
                a = stage(T, d.at.hidden, [&](int t) { return hidden + size_t(t) * d.hidden_rows; });
                multiply<1>(m[3], a, T, add);
                barrier(m[4]);
            }
            if (!wanted) return;
            const float* last = x + size_t(T - 1) * d.dim_rows;
            const uint8_t* a = stage(1, dim, [&](int) { return normed(last, d.norms.data() + size_t(2 * d.at.layers) * dim); });
            multiply<1>(m[0], a, 1, [&](int unit, int, const float* sums) { store(d.logits.floats() + unit * WIDTH, load(sums)); });
        }
    };

    Sizes at;
    int R;
    std::unique_ptr<Format> format;
    std::unique_ptr<Cache> cache;
    int kv_rows, q_rows, dim_rows, hidden_rows, widest, padded_D, chunks;
    size_t rows_floats;
    std::vector<float> norms;
    Memory x, qkv, mixed, hidden, logits, shared, partial, angles;
    std::vector<std::unique_ptr<Memory>> own, rows;  // of each thread: activations; queries, scores and a row
    std::unique_ptr<Memory> weights;
    std::vector<Matrix> matrices;  // four of each layer, then the vocabulary's
    const uint8_t* embeddings = nullptr;
    int64_t embedding_stride = 0;
    Barrier gate;
    std::atomic<int> next{0};
};

}  // namespace

// Null where memory ran out.
extern "C" void* archbench_edge_new(const Sizes* sizes) {
    try {
        return new Decoder(*sizes);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}
extern "C" void archbench_edge_free(void* decoder) { delete static_cast<Decoder*>(decoder); }

// A matrix [count][stride bytes] as GGUF has it; layer ``layers`` is the vocabulary's. Copied.
extern "C" void archbench_edge_matrix(void* decoder, int layer, int part, const uint8_t* raw, int64_t stride, int count) {
    static_cast<Decoder*>(decoder)->pack(layer, part, raw, stride, count);
}
// Norm i [dim]: attention's and the feed-forward block's of each layer, then the last. Copied.
extern "C" void archbench_edge_norm(void* decoder, int i, const float* values) {
    static_cast<Decoder*>(decoder)->norm(i, values);
}
// The embedding as GGUF has it. Kept: it must outlive the decoder.
extern "C" void archbench_edge_embedding(void* decoder, const uint8_t* raw, int64_t stride) {
    static_cast<Decoder*>(decoder)->embedding(raw, stride);
}
// Evaluate tokens [count] from a position on; position + count is within the capacity.
extern "C" void archbench_edge_step(void* decoder, const int32_t* tokens, int count, int position) {
    static_cast<Decoder*>(decoder)->step(tokens, count, position);
}
// Logits of the last step [vocabulary].
extern "C" float* archbench_edge_logits(void* decoder) { return static_cast<Decoder*>(decoder)->result(); }
