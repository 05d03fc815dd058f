// What a kernel reaches that reads or copies and does nothing else.
// The copy writes around the caches: an ordinary store first reads the line it is going to overwrite, so memory moves
// three bytes for two.
#include <cstdint>
#include <cstring>
#include <omp.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

void copy_lines(char* target, const char* source, int64_t bytes) {
#if defined(__AVX512F__)
    for (int64_t i = 0; i < bytes; i += 64)
        _mm512_stream_si512(reinterpret_cast<__m512i*>(target + i), _mm512_loadu_si512(source + i));
    _mm_sfence();
#elif defined(__AVX__)
    for (int64_t i = 0; i < bytes; i += 32)
        _mm256_stream_si256(reinterpret_cast<__m256i*>(target + i),
                            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + i)));
    _mm_sfence();
#else
    std::memcpy(target, source, bytes);
#endif
}

// Bytes of a line are combined so that no load can be left out; several chains keep more lines on their way.
uint64_t read_lines(const char* source, int64_t bytes) {
#if defined(__AVX512F__)
    __m512i chains[4] = {};
    for (int64_t i = 0; i + 256 <= bytes; i += 256)
        for (int j = 0; j < 4; ++j) chains[j] = _mm512_xor_si512(chains[j], _mm512_loadu_si512(source + i + 64 * j));
    const __m512i all = _mm512_xor_si512(_mm512_xor_si512(chains[0], chains[1]), _mm512_xor_si512(chains[2], chains[3]));
    return static_cast<uint64_t>(_mm512_reduce_or_epi64(all));
#else
    uint64_t chains[32] = {};
    for (int64_t i = 0; i + 256 <= bytes; i += 256) {
        uint64_t words[32];
        std::memcpy(words, source + i, 256);
        for (int j = 0; j < 32; ++j) chains[j] ^= words[j];
    }
    uint64_t all = 0;
    for (uint64_t chain : chains) all |= chain;
    return all;
#endif
}

}  // namespace

// Both start at a multiple of 64 bytes, and so long is what is copied.
extern "C" void archbench_copy(char* target, const char* source, int64_t bytes, int threads) {
    const int64_t lines = bytes / 64;
#pragma omp parallel num_threads(threads)
    {
        const int64_t count = omp_get_num_threads(), own = omp_get_thread_num();
        const int64_t from = lines * own / count * 64, to = lines * (own + 1) / count * 64;
        copy_lines(target + from, source + from, to - from);
    }
}

// Reads all but what is left of 256 bytes a thread; returns something that depends on every one of them.
extern "C" uint64_t archbench_read(const char* source, int64_t bytes, int threads) {
    const int64_t lines = bytes / 64;
    uint64_t all = 0;
#pragma omp parallel num_threads(threads) reduction(| : all)
    {
        const int64_t count = omp_get_num_threads(), own = omp_get_thread_num();
        const int64_t from = lines * own / count * 64, to = lines * (own + 1) / count * 64;
        all |= read_lines(source + from, to - from);
    }
    return all;
}
