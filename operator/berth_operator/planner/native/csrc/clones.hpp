// Marks functions whose loops are worth code of their own for wider vectors; results are the same.
#pragma once

#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__)
#define BERTH_CLONES __attribute__((target_clones("default", "avx2", "arch=x86-64-v4")))
#else
#define BERTH_CLONES
#endif
