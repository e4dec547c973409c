// A stand-in for NVRTC, for tests without a GPU: it compiles programs with g++ for the emulator, and returns in place
// of a cubin a shared object (emu/registry.h), which the stand-in driver loads. Callers see no difference: they pass
// the same sources, headers and options, and unknown options are errors.
//
// The emulator's scheduler, emu.o, must be in the same folder as this library. IKQ_CUDA_FOLDER, the folder of the
// kernel sources, is defined when this file is compiled.
#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace fs = std::filesystem;

namespace {

enum Status { SUCCESS = 0, INVALID_INPUT = 3, INVALID_PROGRAM = 4, INVALID_OPTION = 5, COMPILATION = 6, BUILTIN = 7 };

struct Program {
    std::string name, text, log, image;
    std::vector<std::pair<std::string, std::string>> headers;
};

// the architectures of NVRTC 13.0, except variants that nothing here uses
const char *const ARCHITECTURES[] = {"75", "80", "86", "87", "88", "89", "90", "90a", "100", "103", "110", "120", "121"};

std::string quoted(const std::string &text) {
    std::string out = "'";
    for (char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return out + "'";
}

std::string contents(const fs::path &path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

void write(const fs::path &path, const std::string &text) {
    fs::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << text;
}

fs::path own_folder() {
    Dl_info info;
    dladdr(reinterpret_cast<void *>(&own_folder), &info);
    return fs::absolute(info.dli_fname).parent_path();
}

// Runs a command, appends its output to `log`, and returns its exit status.
int run(const std::string &command, std::string &log) {
    FILE *pipe = popen((command + " 2>&1").c_str(), "r");
    if (!pipe) return 1;
    char buffer[4096];
    for (size_t n; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;) log.append(buffer, n);
    const int status = pclose(pipe);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

Status compile(Program &program, const std::vector<std::string> &options) {
    std::string arch, defines;
    for (const std::string &option : options) {
        if (option.rfind("-arch=sm_", 0) == 0) {
            for (const char *known : ARCHITECTURES)
                if (option.substr(9) == known) arch = option.substr(6);
            if (arch.empty()) {
                program.log = "error: invalid value for --gpu-architecture (-arch): " + option;
                return INVALID_OPTION;
            }
        } else if (option.rfind("-D", 0) == 0) {
            defines += " " + quoted(option);
        } else if (option != "-std=c++17" && option != "-lineinfo" && option != "--ptxas-options=-v") {
            program.log = "error: unrecognized option: " + option;
            return INVALID_OPTION;
        }
    }
    std::string pattern = (fs::temp_directory_path() / "ikq-standin-XXXXXX").string();
    if (!mkdtemp(pattern.data())) return COMPILATION;
    const fs::path folder = pattern;
    for (const auto &[name, text] : program.headers) write(folder / "headers" / name, text);
    // the module states its architecture, as a cubin does
    write(folder / "program.cpp", "#line 1 \"" + program.name + "\"\n" + program.text +
                                      "\nextern \"C\" {\nextern __attribute__((visibility(\"default\"))) const char "
                                      "ikq_standin_arch[];\nconst char ikq_standin_arch[] = \"" + arch + "\";\n}\n");
    const std::string out = (folder / "module.so").string();
    const std::string command = "g++ -std=c++17 -O1 -ffp-contract=off -fPIC -shared -fvisibility=hidden -w -DIKQ_EMU" +
                                defines + " -I " + quoted((folder / "headers").string()) + " -I " +
                                quoted(IKQ_CUDA_FOLDER) + " " + quoted((folder / "program.cpp").string()) + " " +
                                quoted((own_folder() / "emu.o").string()) + " -o " + quoted(out);
    const int status = run(command, program.log);
    if (status == 0) program.image = contents(out);
    fs::remove_all(folder);
    return status == 0 ? SUCCESS : COMPILATION;
}

} // namespace

extern "C" {

int nvrtcVersion(int *major, int *minor) {
    const char *version = getenv("IKQ_STANDIN_NVRTC");
    *major = 13, *minor = 0;
    if (version) sscanf(version, "%d.%d", major, minor);
    return SUCCESS;
}

const char *nvrtcGetErrorString(int status) {
    switch (status) {
    case SUCCESS: return "NVRTC_SUCCESS";
    case INVALID_INPUT: return "NVRTC_ERROR_INVALID_INPUT";
    case INVALID_PROGRAM: return "NVRTC_ERROR_INVALID_PROGRAM";
    case INVALID_OPTION: return "NVRTC_ERROR_INVALID_OPTION";
    case COMPILATION: return "NVRTC_ERROR_COMPILATION";
    case BUILTIN: return "NVRTC_ERROR_BUILTIN_OPERATION_FAILURE";
    default: return "NVRTC_ERROR unknown";
    }
}

int nvrtcCreateProgram(Program **program, const char *text, const char *name, int n_headers, const char *const *headers,
                       const char *const *names) {
    if (!program || !text || n_headers < 0) return INVALID_INPUT;
    *program = new Program{name ? name : "default_program", text, "", "", {}};
    for (int i = 0; i < n_headers; i++) (*program)->headers.emplace_back(names[i], headers[i]);
    return SUCCESS;
}

int nvrtcDestroyProgram(Program **program) {
    if (!program || !*program) return INVALID_PROGRAM;
    delete *program;
    *program = nullptr;
    return SUCCESS;
}

int nvrtcCompileProgram(Program *program, int n_options, const char *const *options) {
    if (!program) return INVALID_PROGRAM;
    program->log.clear();
    return compile(*program, {options, options + n_options});
}

int nvrtcGetCUBINSize(Program *program, size_t *size) { return *size = program->image.size(), SUCCESS; }
int nvrtcGetCUBIN(Program *program, char *image) {
    memcpy(image, program->image.data(), program->image.size());
    return SUCCESS;
}
// the size includes the terminating zero
int nvrtcGetProgramLogSize(Program *program, size_t *size) { return *size = program->log.size() + 1, SUCCESS; }
int nvrtcGetProgramLog(Program *program, char *log) {
    memcpy(log, program->log.c_str(), program->log.size() + 1);
    return SUCCESS;
}
}
