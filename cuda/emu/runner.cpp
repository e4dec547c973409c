// A program that runs a single launch, so that sanitizers know exactly which memory the kernel may use.
//
//   RUNNER IN OUT ORDER
//
// ORDER is passed to ikq_emu_set_order. The file IN describes the launch: the length of the kernel's name and the name;
// seven numbers, which are the grid, the block and the bytes of dynamic shared memory; the number of parameters; and
// for each parameter its kind (0 a value, 1 a buffer, 2 null, 3 the buffer of an earlier parameter), the number of its
// bytes (for kind 3 the number of that parameter), and for kinds 0 and 1 the bytes. Numbers have 64 bits, little
// endian. The contents of the buffers after the launch are written to the file OUT.
#include "registry.h"
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

static FILE *in;

static uint64_t number() {
    uint64_t n;
    if (std::fread(&n, 8, 1, in) != 1) std::exit(3);
    return n;
}

static void bytes(void *to, size_t n) {
    if (n && std::fread(to, 1, n, in) != n) std::exit(3);
}

int main(int argc, char **argv) {
    if (argc != 4 || !(in = std::fopen(argv[1], "rb"))) return 3;
    std::string name(number(), ' ');
    bytes(name.data(), name.size());
    uint64_t geometry[7];
    for (uint64_t &g : geometry) g = number();

    struct Parameter {
        uint64_t kind, n;
        void *data; // the value or the contents of the buffer
        void *address;
    };
    std::vector<Parameter> parameters(number());
    std::vector<void *> args;
    for (Parameter &p : parameters) {
        p.kind = number();
        p.n = number();
        p.address = nullptr;
        if (p.kind <= 1) {
            // exactly as many bytes as the kernel may access, aligned like device memory
            if (posix_memalign(&p.data, 256, p.n ? p.n : 1)) return 3;
            bytes(p.data, p.n);
            p.address = p.data;
        }
        if (p.kind == 3) p.address = parameters[p.n].address;
        args.push_back(p.kind == 0 ? p.data : &p.address);
    }
    ikq_emu_set_order(unsigned(std::atoi(argv[3])));
    const auto dim = [&](int i) { return ikq_emu_dim3{unsigned(geometry[i]), unsigned(geometry[i + 1]), unsigned(geometry[i + 2])}; };
    const int rc = ikq_emu_launch(ikq_emu_find(name.c_str()), dim(0), dim(3), geometry[6], args.data());
    FILE *out = std::fopen(argv[2], "wb");
    for (const Parameter &p : parameters)
        if (p.kind == 1 && std::fwrite(p.data, 1, p.n, out) != p.n) return 3;
    std::fclose(out);
    return rc ? 4 : 0;
}
