// Normalization of images whose planes are contiguous: batch, instance and group, forward and backward.
//
// A set of elements with common statistics is a number of planes: one channel of all images (batch), or consecutive
// channels of one image (group; instance has one). A task is one set: its second pass, which writes, reads what the
// first left in the cache, so memory sees every element once. While it writes, it asks for the elements of the next set:
// memory reads and writes at once, and the first pass of the next set meets no latency, however short its planes are.
//
// With n = (x - mean) / deviation and weight w, the gradient is
// dx = (w dy - mean(w dy) - n mean(w dy n)) / deviation, over the set, = dy a + (x - mean) b + c with numbers a, b, c.
//
// Letters: N images, C channels, P elements of a plane, G groups.

#include <vector>

#include "vectors.hpp"

namespace {

using namespace archbench;

struct Planes {
    int64_t N, C, P, G;  // G = 0: a set is a channel of all images
    bool given;          // the statistics are: no set depends on its elements
    double eps;
    int threads;

    int64_t sets() const { return G ? N * G : C; }
    int64_t planes_of_set() const { return G ? C / G : N; }
    int64_t plane(int64_t set, int64_t i) const { return G ? set * (C / G) + i : i * C + set; }
    // From an element to its counterpart in the next set; to itself in the last one.
    int64_t to_next(int64_t set) const { return set + 1 < sets() ? (G ? C / G * P : P) : 0; }
    double size_of_set() const { return double(planes_of_set() * P); }
    double inverse(double variance) const { return 1 / std::sqrt(variance + eps); }
};

template <class Element>
Moments moments(const Planes& at, const Element* x, int64_t set) {
    Collector<Element> all_planes;
    if (at.G) all_planes.add(x + at.plane(set, 0) * at.P, at.planes_of_set() * at.P);
    else
        for (int64_t i = 0; i < at.N; ++i) all_planes.add(x + at.plane(set, i) * at.P, at.P);
    return all_planes.done();
}

template <bool STREAM, class Element>
void forward(const Planes& at, const Element* x, const float* weight, const float* bias, double* mean, double* variance,
             Element* y) {
    const auto normalise = [&](int64_t plane, const Split& m, double inverse, int64_t next) {
        const int64_t c = plane % at.C;
        const double scale = weight[c] * inverse;
        const Vector high = all(m.high), a = all(float(scale)), b = all(float(bias[c] - m.low * scale));
        const Element* from = x + plane * at.P;
        write<STREAM>(y + plane * at.P, at.P, [&](int64_t i, int n) {
            ask(from + i + next);
            return (take(from + i, n) - high) * a + b;
        });
    };
#pragma omp parallel num_threads(at.threads)
    {
        if (at.given) {
#pragma omp for schedule(static)
            for (int64_t plane = 0; plane < at.N * at.C; ++plane)
                normalise(plane, Split(mean[plane % at.C]), at.inverse(variance[plane % at.C]), 0);
        } else {
#pragma omp for schedule(static)
            for (int64_t set = 0; set < at.sets(); ++set) {
                const Moments found = moments(at, x, set);
                mean[set] = found.mean, variance[set] = found.variance();
                const Split m(found.mean);
                const double inverse = at.inverse(found.variance());
                for (int64_t i = 0; i < at.planes_of_set(); ++i)
                    normalise(at.plane(set, i), m, inverse, at.to_next(set));
            }
        }
        streamed();
    }
}

template <bool STREAM, class Element>
struct Backward {
    const Planes& at;
    const Element *x, *dy;
    const float* weight;
    const double *mean, *variance;
    Element* dx;
    // sum(dy) and sum(dy n): of each plane, or of each channel where a set is one.
    std::vector<double> slopes, levers;

    struct Set {
        Split mean;
        double inverse;
    };
    Set of(int64_t set) const { return {Split(mean[set]), at.inverse(variance[set])}; }

    // Sums over planes with one mean: in lanes as long as they are short, then in double.
    struct Sums {
        Lanes first, second;
        int64_t pending = 0;
        double slope = 0, lever = 0;

        void flush() {
            slope += first.total(), lever += second.total();
            first = second = Lanes{}, pending = 0;
        }
    };
    void sum(int64_t plane, const Set& set, Sums& into) const {
        const Vector high = all(set.mean.high);
        for (int64_t start = 0, n; start < at.P; start += n) {
            const Element *g = dy + plane * at.P + start, *f = x + plane * at.P + start;
            n = std::min<int64_t>(4096, at.P - start);
            Lanes first = into.first, second = into.second;  // members would be stored at every step
            over(n, [&](int64_t i, int k, int u) {
                const Vector slopes = take(g + i, k);
                first.part[u] += slopes, second.part[u] += slopes * (take(f + i, k) - high);
            });
            into.first = first, into.second = second, into.pending += n;
            if (into.pending >= 4096) into.flush();
        }
    }
    void keep(int64_t place, const Set& set, Sums& sums) {
        sums.flush();
        slopes[place] = sums.slope, levers[place] = (sums.lever - set.mean.low * sums.slope) * set.inverse;
        sums = Sums{};
    }
    void apply(int64_t plane, const Set& set, double offset, double tilt, int64_t next) const {
        const double slant = -tilt * set.inverse * set.inverse;
        const Vector high = all(set.mean.high), a = all(float(set.inverse * weight[plane % at.C])), b = all(float(slant));
        const Vector c = all(float(-offset * set.inverse - set.mean.low * slant));
        const Element *g = dy + plane * at.P, *f = x + plane * at.P;
        write<STREAM>(dx + plane * at.P, at.P, [&](int64_t i, int n) {
            ask(g + i + next), ask(f + i + next);
            return take(g + i, n) * a + ((take(f + i, n) - high) * b + c);
        });
    }
    void whole(int64_t s) {
        const Set set = of(s);
        double offset = 0, tilt = 0;
        Sums sums;
        for (int64_t i = 0; i < at.planes_of_set(); ++i) {
            const int64_t plane = at.plane(s, i), c = plane % at.C;
            sum(plane, set, sums);
            if (!at.G && i + 1 < at.N) continue;
            const int64_t place = at.G ? plane : c;
            keep(place, set, sums);
            offset += weight[c] * slopes[place], tilt += weight[c] * levers[place];
        }
        offset /= at.size_of_set(), tilt /= at.size_of_set();
        for (int64_t i = 0; i < at.planes_of_set(); ++i) apply(at.plane(s, i), set, offset, tilt, at.to_next(s));
    }
    void run(float* dweight, float* dbias) {
        const int64_t images = at.G || at.given ? at.N : 1;
        slopes.resize(images * at.C), levers.resize(images * at.C);
#pragma omp parallel num_threads(at.threads)
        {
            if (at.given) {
#pragma omp for schedule(static)
                for (int64_t plane = 0; plane < at.N * at.C; ++plane) {
                    const Set set = of(plane % at.C);
                    Sums sums;
                    sum(plane, set, sums), keep(plane, set, sums), apply(plane, set, 0, 0, 0);
                }
            } else {
#pragma omp for schedule(static)
                for (int64_t s = 0; s < at.sets(); ++s) whole(s);
            }
            streamed();
        }
        for (int64_t c = 0; c < at.C; ++c) {
            double slope = 0, lever = 0;
            for (int64_t n = 0; n < images; ++n) slope += slopes[n * at.C + c], lever += levers[n * at.C + c];
            dbias[c] = float(slope), dweight[c] = float(lever);
        }
    }
};

template <class Element>
void backward(bool around, const Planes& at, const Element* x, const Element* dy, const float* weight,
              const double* mean, const double* variance, Element* dx, float* dweight, float* dbias) {
    if (around) Backward<true, Element>{at, x, dy, weight, mean, variance, dx, {}, {}}.run(dweight, dbias);
    else Backward<false, Element>{at, x, dy, weight, mean, variance, dx, {}, {}}.run(dweight, dbias);
}

}  // namespace

// statistics: mean[sets], then variance[sets]; written unless ``given``, which means one of each per channel.
extern "C" void archbench_planes_forward(int is_bf16, int64_t N, int64_t C, int64_t P, int64_t G, int given, double eps,
                                         int threads, int around, const void* x, const float* weight, const float* bias,
                                         double* statistics, void* y) {
    const Planes at{N, C, P, G, given != 0, eps, threads};
    double* variance = statistics + at.sets();
    const auto go = [&](auto element) {
        using Element = decltype(element);
        const auto from = static_cast<const Element*>(x);
        const auto to = static_cast<Element*>(y);
        if (around) forward<true>(at, from, weight, bias, statistics, variance, to);
        else forward<false>(at, from, weight, bias, statistics, variance, to);
    };
    if (is_bf16) go(bf16{});
    else go(float{});
}

extern "C" void archbench_planes_backward(int is_bf16, int64_t N, int64_t C, int64_t P, int64_t G, int given, double eps,
                                          int threads, int around, const void* x, const void* dy, const float* weight,
                                          const double* statistics, void* dx, float* dweight, float* dbias) {
    const Planes at{N, C, P, G, given != 0, eps, threads};
    const double* variance = statistics + at.sets();
    const auto go = [&](auto element) {
        using Element = decltype(element);
        backward(around, at, static_cast<const Element*>(x), static_cast<const Element*>(dy), weight, statistics,
                 variance, static_cast<Element*>(dx), dweight, dbias);
    };
    if (is_bf16) go(bf16{});
    else go(float{});
}
