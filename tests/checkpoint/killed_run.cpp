// A run for kill_test.py: trains from "last" to its end, saving after each step, and prints a hash of its weights.
// Called as: killed_run FOLDER EPOCHS
#include <fulmen/callbacks/model_checkpoint.hpp>
#include <fulmen/criteria/classification.hpp>
#include <fulmen/data/tensor_loader.hpp>
#include <fulmen/loggers/csv.hpp>
#include <fulmen/optim/adam.hpp>
#include <fulmen/schedule/decay.hpp>
#include <fulmen/seed.hpp>
#include <fulmen/trainer.hpp>

#include <torch/torch.h>

#include <cinttypes>
#include <cstdio>
#include <cstdlib>

namespace {

struct Net : torch::nn::Module {
  torch::nn::Linear in{nullptr}, out{nullptr};
  Net() {
    in = register_module("in", torch::nn::Linear(64, 1024));
    out = register_module("out", torch::nn::Linear(1024, 4));
  }
  torch::Tensor forward(torch::Tensor x) { return out(torch::dropout(torch::relu(in(x)), 0.2, is_training())); }
};

/// Says that training runs: what comes before it takes longer than all of the training.
struct Announce {
  void on_train_batch_end(fulmen::Context& ctx) {
    std::printf("step %" PRId64 "\n", ctx.global_step());
    std::fflush(stdout);
  }
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  using namespace fulmen;
  at::set_num_threads(1);
  seed_everything(3);
  const torch::Tensor images = torch::randn({60, 64}), labels = torch::randint(4, {60});
  Trainer trainer{Net(),
                  CrossEntropy{},
                  AdamW{.lr = 1e-3},
                  StepLR{.step_size = 2},
                  Identity{},
                  callbacks(Announce{}, ModelCheckpoint{.monitor = "train/loss", .save_top_k = 2, .every_n_train_steps = 1}),
                  Options{.max_epochs = std::atoi(argv[2]), .accumulate_grad_batches = 2, .log_every_n_steps = 1, .default_root_dir = argv[1], .name = "run"},
                  Runtime{.loggers = std::tuple{CSVLogger{}}, .defaults = std::tuple<>{}}};
  trainer.fit(TensorLoader({images, labels}, {.batch_size = 5, .shuffle = true}),
              TensorLoader({images, labels}, {.batch_size = 20}), {.ckpt_path = "last"});
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const torch::Tensor& p : trainer.module().parameters()) {
    const auto* bytes = static_cast<const unsigned char*>(p.const_data_ptr());
    for (std::size_t i = 0; i < p.nbytes(); ++i) hash = (hash ^ bytes[i]) * 0x100000001b3u;
  }
  std::printf("weights %016" PRIx64 "\n", hash);
}
