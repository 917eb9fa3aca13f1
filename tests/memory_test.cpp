// Tests memory.hpp: pages of large tensors are not asked for again. A program of its own, since that holds for the process.
#include <fulmen/memory.hpp>

#include <ATen/ops/ones.h>

#include <gtest/gtest.h>

#include <sys/resource.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define OTHER_MALLOC 1  // the sanitizers bring their own
#else
#define OTHER_MALLOC 0
#endif

namespace {

/// Page faults of ten steps with three temporary tensors of 4 MiB each (1024 pages).
long page_faults() {
  rusage before{}, after{};
  getrusage(RUSAGE_SELF, &before);
  for (int step = 0; step < 10; ++step) {
    const at::Tensor a = at::ones({1 << 20}), b = a + 1, c = a * b;
    EXPECT_EQ(c[5].item<float>(), 2);
  }
  getrusage(RUSAGE_SELF, &after);
  return after.ru_minflt - before.ru_minflt;
}

TEST(Memory, FreedMemoryIsKept) {
#if defined(__GLIBC__)
  if (OTHER_MALLOC) GTEST_SKIP() << "another allocator";
  const long mapped = page_faults();
  EXPECT_TRUE(fulmen::keep_freed_memory());
  page_faults();  // the heap grows to what a step needs
  const long kept = page_faults();
  EXPECT_LT(kept, 1024) << "it was " << mapped;
  EXPECT_GT(mapped, 8 * 1024) << "nothing to spare?";
#else
  EXPECT_FALSE(fulmen::keep_freed_memory());
#endif
}

}  // namespace
