// keep_freed_memory: spares a training step the page faults of its large temporary tensors.
#pragma once

#include <fulmen/compiled.hpp>

#if FULMEN_BODIES
#include <cstdlib>  // defines __GLIBC__

#if defined(__GLIBC__)
#include <malloc.h>
#endif
#endif

namespace fulmen {

/// Tells the C library to keep memory that is freed, for the next step, which needs as much. glibc otherwise gives each
/// large block back to the system when a tensor dies, and the next one of its size is mapped and cleared page by page.
///
/// It holds for the whole process, from the call on: memory grows to what a step needs at most and stays there. Call it at the
/// beginning of main(). Allocators such as mimalloc keep memory by themselves; there, and where the C library is not
/// glibc, it does nothing. @return whether the C library has taken it
bool keep_freed_memory();

#if FULMEN_BODIES
FULMEN_INLINE bool keep_freed_memory() {
#if defined(__GLIBC__)
  // Blocks up to 1 GiB are not mapped by themselves (older releases allow 32 MiB at most), and the top of the heap is
  // not given back.
  const bool mapped = mallopt(M_MMAP_THRESHOLD, 1 << 30) == 1 || mallopt(M_MMAP_THRESHOLD, 32 << 20) == 1;
  return mapped && mallopt(M_TRIM_THRESHOLD, 1 << 30) == 1;
#else
  return false;
#endif
}
#endif

}  // namespace fulmen
