// Runs native operations for another process: of another instruction set, under an emulator.
//
//     runner LIBRARY ISA MEMORY ADDRESS
//
// MEMORY is a file that both have mapped, here at ADDRESS: the pointers in the structs of arguments and in
// arrays are addresses from there on. A request on stdin is the lengths of a name and of a struct, the number of
// threads, the name, the struct; the answer on stdout is the number of fields that the operation has, and it
// has been run if they are those of the struct. At the start the library's processor line is written.
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

typedef void Run(const void*, struct Thread*);

int main(int count, char** given) {
    if (count != 5) return 2;
    void* library = dlopen(given[1], RTLD_NOW);
    if (!library) return fprintf(stderr, "%s\n", dlerror()), 3;
    const int file = open(given[3], O_RDWR);
    struct stat about;
    if (file < 0 || fstat(file, &about)) return perror(given[3]), 4;
    void* wanted = reinterpret_cast<void*>(strtoull(given[4], nullptr, 0));
    if (mmap(wanted, size_t(about.st_size), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) != wanted)
        return perror("mmap"), 5;
    auto processor = reinterpret_cast<const char* (*)()>(dlsym(library, "tinytorch_processor"));
    auto call = reinterpret_cast<void (*)(Run*, const void*, int64_t)>(dlsym(library, "tinytorch_call"));
    printf("%s\n", processor());
    fflush(stdout);
    int64_t sizes[3];
    while (fread(sizes, sizeof sizes, 1, stdin) == 1) {
        char name[200] = {}, symbol[300];
        alignas(8) char arguments[2048];
        if (sizes[0] >= 200 || sizes[1] > 2048 || fread(name, size_t(sizes[0]), 1, stdin) != 1 ||
            fread(arguments, size_t(sizes[1]), 1, stdin) != 1)
            return 6;
        snprintf(symbol, sizeof symbol, "%s_%s_fields", name, given[2]);
        auto fields = static_cast<const int64_t*>(dlsym(library, symbol));
        snprintf(symbol, sizeof symbol, "%s_%s", name, given[2]);
        auto run = reinterpret_cast<Run*>(dlsym(library, symbol));
        if (!fields || !run) return fprintf(stderr, "no %s\n", symbol), 7;
        if (8 * *fields == sizes[1]) call(run, arguments, sizes[2]);
        fwrite(fields, 8, 1, stdout);
        fflush(stdout);
    }
    return 0;
}
