// csrc/one_read.h on a CPU: every thread of every block of a cluster is a thread of this machine, a warp is two of them.
// Shared memory is NaN before a row and after it, so that what is read too early or too late shows.

#include <atomic>
#include <barrier>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "one_read.h"

namespace {

using megadistill::Block;
using megadistill::Sums;

struct Bf16 {
  uint16_t bits = 0;
  Bf16() = default;
  explicit Bf16(float value) {
    uint32_t whole;
    std::memcpy(&whole, &value, sizeof whole);
    bits = (whole + 0x7fff + (whole >> 16 & 1)) >> 16;
  }
  explicit operator float() const {
    const uint32_t whole = uint32_t{bits} << 16;
    float value;
    std::memcpy(&value, &whole, sizeof value);
    return value;
  }
};

constexpr int kWarp = 2;

struct Warp {
  std::barrier<> meeting{kWarp};
  float values[kWarp];
};

struct Cluster {
  int blocks, threads;
  std::barrier<> meeting, between;
  std::vector<std::vector<Sums>> memory;
  std::vector<std::unique_ptr<Warp>> warps;
  std::vector<std::atomic<int>> ended;

  Cluster(int blocks, int threads, int64_t bytes)
      : blocks(blocks), threads(threads), meeting(blocks * threads), between(blocks * threads), ended(blocks) {
    memory.assign(blocks, std::vector<Sums>(bytes / sizeof(Sums)));
    for (int i = 0; i < blocks; ++i) forget(i);
    for (int i = 0; i < blocks * threads / kWarp; ++i) warps.push_back(std::make_unique<Warp>());
  }

  void forget(int block) {
    for (Sums& sums : memory[block]) sums = {NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN};
  }
};

struct Team {
  static constexpr int kLanes = kWarp;
  Cluster& cluster;
  int block, number;
  mutable std::unique_ptr<std::barrier<>::arrival_token> token;

  int thread() const { return number; }
  int threads() const { return cluster.threads; }
  int rank() const { return block; }
  int blocks() const { return cluster.blocks; }
  void* memory() const { return cluster.memory[block].data(); }
  const Sums* of(const Sums* mine, int rank) const {
    return cluster.memory[rank].data() + (mine - cluster.memory[block].data());
  }
  float exchange(float value, int mask) const {
    Warp& warp = *cluster.warps[(block * cluster.threads + number) / kWarp];
    const int lane = number % kWarp;
    warp.values[lane] = value;
    warp.meeting.arrive_and_wait();
    const float got = warp.values[lane ^ mask];
    warp.meeting.arrive_and_wait();
    return got;
  }
  void arrive() const { token = std::make_unique<std::barrier<>::arrival_token>(cluster.meeting.arrive()); }
  void wait() const { cluster.meeting.wait(std::move(*token)); }
};

template <class Logit, class Gradient>
void run(const Block& block, int blocks, int threads) {
  Cluster cluster(blocks, threads, megadistill::shared_bytes(block, blocks, threads / kWarp));
  std::vector<std::thread> all;
  for (int i = 0; i < blocks * threads; ++i) {
    all.emplace_back([&, i] {
      const Team team{cluster, i / threads, i % threads, nullptr};
      for (int64_t number = 0; number < block.rows; ++number) {
        megadistill::row<Logit, Gradient>(block, team, number);
        if (++cluster.ended[team.rank()] == cluster.threads) {  // a block's memory goes with its last thread
          cluster.ended[team.rank()] = 0;
          cluster.forget(team.rank());
        }
        cluster.between.arrive_and_wait();
      }
    });
  }
  for (auto& thread : all) thread.join();
}

}  // namespace

extern "C" int megadistill_rows_once(const Block* block, int types, int blocks, int threads, int, void*) {
  switch (types) {
    case 0: run<float, float>(*block, blocks, threads); return 0;
    case 1: run<float, Bf16>(*block, blocks, threads); return 0;
    case 3: run<Bf16, Bf16>(*block, blocks, threads); return 0;
  }
  return 1;
}

extern "C" const char* megadistill_cuda_error(int) { return "not one of the types of this test"; }
