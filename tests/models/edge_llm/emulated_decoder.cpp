// The C++ decoder in a process of its own, for another processor under an emulator: commands come in, logits go out.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "decoder.cpp"

namespace {

void take(void* to, size_t bytes) {
    if (std::fread(to, 1, bytes, stdin) != bytes) std::exit(0);  // the other side has closed
}

}  // namespace

int main() {
    edge::Sizes sizes;
    take(&sizes, sizeof sizes);
    void* decoder = archbench_edge_new(&sizes);
    std::vector<uint8_t> embedding;
    std::vector<float> logits(sizes.vocabulary);
    for (;;) {
        int64_t head[5];  // command, then up to three numbers, bytes that follow
        take(head, sizeof head);
        std::vector<uint8_t> body(head[4]);
        take(body.data(), body.size());
        switch (head[0]) {
            case 'M': archbench_edge_matrix(decoder, head[1], head[2], body.data(), head[4] / head[3], head[3]); break;
            case 'N': archbench_edge_norm(decoder, head[1], reinterpret_cast<float*>(body.data())); break;
            case 'E': embedding = body, archbench_edge_embedding(decoder, embedding.data(), head[1]); break;
            default:
                archbench_edge_step(decoder, reinterpret_cast<int32_t*>(body.data()), head[1], head[2], logits.data());
                std::fwrite(logits.data(), sizeof(float), logits.size(), stdout);
                std::fflush(stdout);
        }
    }
}
