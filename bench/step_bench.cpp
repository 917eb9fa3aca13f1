// A training step end to end: the plain LibTorch loop, the loop of an expert, or fulmen's Trainer, on one
// model; measured whenever a line comes in. bench/step.py starts one process a peer, asks them in turn and
// prints the table.
#include "callgrind.hpp"

#include <fulmen/fulmen.hpp>
#include <fulmen/nn/nn.hpp>

#include <ATen/CPUFunctions.h>
#include <torch/torch.h>

#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

namespace nn = torch::nn;
using Clock = std::chrono::steady_clock;
using Batch = std::tuple<at::Tensor, at::Tensor>;

constexpr std::int64_t kBatches = 64;  // in the data file; a loop takes them over and over
constexpr std::int64_t kProven =
    128;  // steps before the first measurement, after which all peers must have the same loss

// The models. bench/peers/python.py has the same, with the same names.

// `composed(net)` is the same model of fulmen's layers, with the net's own parameters.

namespace layers = fulmen::nn;

template <std::int64_t In, std::int64_t Hidden, std::int64_t Out, std::int64_t BatchSize>
struct Mlp : nn::Module {
  nn::Linear fc1{register_module("fc1", nn::Linear(In, Hidden))};
  nn::Linear fc2{register_module("fc2", nn::Linear(Hidden, Out))};
  at::Tensor forward(const at::Tensor& x) { return fc2(at::relu(fc1(x))); }
  static auto composed(const Mlp& net) { return layers::Sequential{net.fc1, layers::ReLU(), net.fc2}; }
  auto linears() const { return std::array{fc1, fc2}; }

  static at::Tensor inputs() { return at::randn({kBatches, BatchSize, In}); }
  static at::Tensor targets() { return at::randint(Out, {kBatches, BatchSize}, at::kLong); }
};

struct Mlp256 : nn::Module {
  nn::Linear fc1{register_module("fc1", nn::Linear(784, 256))};
  nn::Linear fc2{register_module("fc2", nn::Linear(256, 256))};
  nn::Linear fc3{register_module("fc3", nn::Linear(256, 10))};
  at::Tensor forward(const at::Tensor& x) { return fc3(at::relu(fc2(at::relu(fc1(x))))); }
  static auto composed(const Mlp256& net) {
    return layers::Sequential{net.fc1, layers::ReLU(), net.fc2, layers::ReLU(), net.fc3};
  }
  auto linears() const { return std::array{fc1, fc2, fc3}; }

  static at::Tensor inputs() { return at::randn({kBatches, 64, 784}); }
  static at::Tensor targets() { return at::randint(10, {kBatches, 64}, at::kLong); }
};

/// Images 1×28×28, two convolutions.
struct Cnn : nn::Module {
  nn::Conv2d conv1{register_module("conv1", nn::Conv2d(nn::Conv2dOptions(1, 8, 3)))};
  nn::Conv2d conv2{register_module("conv2", nn::Conv2d(nn::Conv2dOptions(8, 16, 3)))};
  nn::Linear fc{register_module("fc", nn::Linear(16 * 5 * 5, 10))};
  at::Tensor forward(const at::Tensor& x) {
    const at::Tensor first = at::max_pool2d(at::relu(conv1(x)), 2);
    return fc(at::max_pool2d(at::relu(conv2(first)), 2).flatten(1));
  }
  static auto composed(const Cnn& net) {
    return layers::Sequential{net.conv1, layers::ReLU(), layers::MaxPool2d(2), net.conv2, layers::ReLU(), layers::MaxPool2d(2), layers::Flatten(), net.fc};
  }

  static at::Tensor inputs() { return at::randn({kBatches, 32, 1, 28, 28}); }
  static at::Tensor targets() { return at::randint(10, {kBatches, 32}, at::kLong); }
};

struct BlockImpl : nn::Module {
  nn::LayerNorm norm1{register_module("norm1", nn::LayerNorm(nn::LayerNormOptions({32})))};
  nn::Linear qkv{register_module("qkv", nn::Linear(32, 96))};
  nn::Linear proj{register_module("proj", nn::Linear(32, 32))};
  nn::LayerNorm norm2{register_module("norm2", nn::LayerNorm(nn::LayerNormOptions({32})))};
  nn::Linear fc1{register_module("fc1", nn::Linear(32, 128))};
  nn::Linear fc2{register_module("fc2", nn::Linear(128, 32))};

  at::Tensor forward(const at::Tensor& x) {
    const std::int64_t batch = x.size(0), time = x.size(1);
    const auto parts = qkv(norm1(x)).view({batch, time, 3, 4, 8}).permute({2, 0, 3, 1, 4}).unbind(0);
    const at::Tensor heads = at::scaled_dot_product_attention(parts[0], parts[1], parts[2]);
    const at::Tensor attended = x + proj(heads.transpose(1, 2).reshape({batch, time, 32}));
    return attended + fc2(at::gelu(fc1(norm2(attended))));
  }
};
TORCH_MODULE(Block);

/// A layer of one's own, as fulmen's users write it.
struct AddPosition : nn::Module {
  at::Tensor position;
  explicit AddPosition(const at::Tensor& p) : position(register_parameter("position", p, p.requires_grad())) {}
  at::Tensor forward(const at::Tensor& x) { return x + position; }
  at::Tensor backward(const at::Tensor&, const at::Tensor&, const at::Tensor& grad) {
    layers::add_gradient(position, grad.sum(0));
    return grad;
  }
};

/// Sequences of 16 tokens, two blocks of 4 heads, 32 channels.
struct Transformer : nn::Module {
  nn::Embedding embed{register_module("embed", nn::Embedding(64, 32))};
  at::Tensor position{register_parameter("position", at::randn({16, 32}))};
  Block block1{register_module("block1", Block())}, block2{register_module("block2", Block())};
  nn::LayerNorm norm{register_module("norm", nn::LayerNorm(nn::LayerNormOptions({32})))};
  nn::Linear head{register_module("head", nn::Linear(32, 10))};
  at::Tensor forward(const at::Tensor& x) { return head(norm(block2(block1(embed(x) + position))).mean(1)); }
  static auto composed(const Transformer& net) {
    const auto block = [](const Block& b) {
      layers::SelfAttention attention(32, 4);
      const at::NoGradGuard no_grad;
      attention.in_proj_weight.copy_(b->qkv->weight), attention.in_proj_bias.copy_(b->qkv->bias);
      attention.out_proj->weight.copy_(b->proj->weight), attention.out_proj->bias.copy_(b->proj->bias);
      return layers::Sequential{layers::Residual{b->norm1, std::move(attention)},
                                layers::Residual{b->norm2, b->fc1, layers::GELU(), b->fc2}};
    };
    return layers::Sequential{net.embed, AddPosition(net.position), block(net.block1), block(net.block2), net.norm,
                              layers::Mean({1}), net.head};
  }

  static at::Tensor inputs() { return at::randint(64, {kBatches, 16, 16}, at::kLong); }
  static at::Tensor targets() { return at::randint(10, {kBatches, 16}, at::kLong); }
};

/// Initial weights and batches, which all peers of all languages read.
template <class Net>
void write_data(const std::filesystem::path& file) {
  fulmen::seed_everything(0);
  const Net net;
  fulmen::State all("the data of a benchmark");
  all.set("state_dict", fulmen::module_state(net));
  all.set("inputs", Net::inputs());
  all.set("targets", Net::targets());
  fulmen::checkpoint::write(file, all);
}

template <class Net>
struct Problem {
  std::shared_ptr<Net> net = std::make_shared<Net>();
  std::vector<Batch> batches;

  Problem(std::shared_ptr<Net> n, std::vector<Batch> b) : net(std::move(n)), batches(std::move(b)) {}
  explicit Problem(const std::filesystem::path& file) {
    const fulmen::State all(fulmen::checkpoint::read(file), file.string());
    fulmen::load_module_state(*net, all.get<fulmen::State>("state_dict"));
    const auto inputs = all.get<at::Tensor>("inputs"), targets = all.get<at::Tensor>("targets");
    for (std::int64_t i = 0; i < kBatches; ++i) batches.emplace_back(inputs[i].clone(), targets[i].clone());
  }

  const Batch& batch(std::int64_t i) const { return batches[static_cast<std::size_t>(i % kBatches)]; }
  double mean_loss() const {
    const at::NoGradGuard no_grad;
    double sum = 0;
    for (const auto& [x, y] : batches) sum += at::cross_entropy_loss(net->forward(x), y).item().toDouble();
    return sum / kBatches;
  }
};

// The peers: run(steps) gives back how long the steps took, without what happens before the first and after
// the last.

/// As in LibTorch's own examples.
template <class Net>
struct Plain {
  Problem<Net>& problem;
  torch::optim::Adam optimizer{problem.net->parameters(), 1e-3};

  Clock::duration run(std::int64_t steps) {
    const auto begin = Clock::now();
    for (std::int64_t i = 0; i < steps; ++i) {
      const auto& [x, y] = problem.batch(i);
      optimizer.zero_grad();
      const at::Tensor loss = torch::nn::functional::cross_entropy(problem.net->forward(x), y);
      loss.backward();
      optimizer.step();
    }
    return Clock::now() - begin;
  }
};

/// The fastest that can be written by hand with LibTorch's autograd: one fused call for all parameters,
/// gradients taken from them in place of being set to zero, one step counter for all.
template <class Net>
struct Expert {
  Problem<Net>& problem;
  std::vector<at::Tensor> params = problem.net->parameters(), grads{params.size()}, m{}, v{};
  std::vector<at::Tensor> counters = std::vector<at::Tensor>(params.size(), at::zeros({}));
  float* counter = counters[0].template mutable_data_ptr<float>();

  explicit Expert(Problem<Net>& p) : problem(p) {
    for (const at::Tensor& t : params) m.push_back(at::zeros_like(t)), v.push_back(at::zeros_like(t));
  }
  Clock::duration run(std::int64_t steps) {
    const auto begin = Clock::now();
    for (std::int64_t i = 0; i < steps; ++i) {
      const auto& [x, y] = problem.batch(i);
      at::cross_entropy_loss(problem.net->forward(x), y).backward();
      for (std::size_t k = 0; k < params.size(); ++k) grads[k] = std::move(params[k].mutable_grad());
      const at::NoGradGuard no_grad;
      ++*counter;
      at::_fused_adam_(params, grads, m, v, {}, counters, 1e-3, 0.9, 0.999, 0, 1e-8, false, false);
    }
    return Clock::now() - begin;
  }
};

/// A step without autograd as one would write it for this very model: linear layers and ReLU, ATen's kernels for the CPU, over tensors made once.
template <class Net>
struct Hand {
  static constexpr std::size_t n = std::tuple_size_v<decltype(std::declval<Net>().linears())>;
  Problem<Net>& problem;
  std::vector<at::Tensor> params = problem.net->parameters(), grads, m, v;
  std::vector<at::Tensor> counters = std::vector<at::Tensor>(params.size(), at::zeros({}));
  float* counter = counters[0].template mutable_data_ptr<float>();
  std::array<at::Tensor, n> weight, transposed, bias, out, grad, grad_t;
  at::Tensor log_p, loss = at::empty({}), total = at::empty({}), log_grad, one = at::ones({});

  explicit Hand(Problem<Net>& p) : problem(p) {
    for (const at::Tensor& t : params) grads.push_back(at::empty_like(t)), m.push_back(at::zeros_like(t)), v.push_back(at::zeros_like(t));
    const std::int64_t batch = std::get<0>(problem.batch(0)).size(0);
    const auto linears = problem.net->linears();
    for (std::size_t i = 0; i < n; ++i) {
      weight[i] = linears[i]->weight.detach(), bias[i] = linears[i]->bias.detach(), transposed[i] = weight[i].t();
      out[i] = at::empty({batch, weight[i].size(0)}), grad[i] = at::empty_like(out[i]), grad_t[i] = grad[i].t();
    }
    log_p = at::empty_like(out[n - 1]), log_grad = at::empty_like(log_p);
  }
  Clock::duration run(std::int64_t steps) {
    const c10::InferenceMode guard;
    const auto begin = Clock::now();
    for (std::int64_t s = 0; s < steps; ++s) {
      const auto& [x, y] = problem.batch(s);
      for (std::size_t i = 0; i < n; ++i) {
        at::cpu::addmm_out(out[i], bias[i], i == 0 ? x : out[i - 1], transposed[i]);
        if (i + 1 < n) at::cpu::clamp_min_out(out[i], out[i], 0);
      }
      at::cpu::_log_softmax_out(log_p, out[n - 1], 1, false);
      at::cpu::nll_loss_forward_out(loss, total, log_p, y, {}, at::Reduction::Mean, -100);
      at::cpu::nll_loss_backward_out(log_grad, one, log_p, y, {}, at::Reduction::Mean, -100, total);
      at::cpu::_log_softmax_backward_data_out(grad[n - 1], log_grad, log_p, 1, at::kFloat);
      for (std::size_t i = n; i-- > 0;) {
        at::cpu::mm_out(grads[2 * i], grad_t[i], i == 0 ? x : out[i - 1]);
        at::cpu::sum_out(grads[2 * i + 1], grad[i], at::OptionalIntArrayRef(0));
        if (i == 0) break;
        at::cpu::mm_out(grad[i - 1], grad[i], weight[i]);
        at::cpu::threshold_backward_out(grad[i - 1], grad[i - 1], out[i - 1], 0);
      }
      ++*counter;
      at::_fused_adam_(params, grads, m, v, {}, counters, 1e-3, 0.9, 0.999, 0, 1e-8, false, false);
    }
    return Clock::now() - begin;
  }
};

/// The batches as a loader of a given size.
template <class Net>
struct Loader {
  const Problem<Net>* problem;
  std::int64_t count;

  struct Iterator {
    const Loader* loader;
    std::int64_t i;
    const Batch& operator*() const { return loader->problem->batch(i); }
    Iterator& operator++() { return ++i, *this; }
    bool operator!=(const Iterator& other) const { return i != other.i; }
  };
  Iterator begin() const { return {this, 0}; }
  Iterator end() const { return {this, count}; }
  std::int64_t size() const { return count; }
};

/// Answers two hooks an epoch, none a step. It comes before the default callbacks, so that their work at an
/// epoch's end is not in it.
struct Stopwatch {
  Clock::time_point begin;
  Clock::duration spent{};
  void on_train_epoch_start() { begin = Clock::now(); }
  void on_train_epoch_end() { spent = Clock::now() - begin; }
};

/// A folder for the files of a run, removed with all that is in it.
struct TemporaryFolder {
  std::filesystem::path path;
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "fulmen-bench-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("cannot make the folder " + name);
    path = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
};

/// DefaultRuntime: progress bar, CSV log, a checkpoint an epoch; the loss is logged either way. A run is an
/// epoch.
template <class Net, class Runtime, class Callbacks>
struct Fulmen {
  Problem<Net>& problem;
  TemporaryFolder folder{};
  fulmen::Trainer<Net, fulmen::CrossEntropy, fulmen::Adam, fulmen::None, fulmen::Identity, Callbacks, Runtime>
      trainer{problem.net,
              fulmen::CrossEntropy{},
              fulmen::Adam{},
              fulmen::none,
              fulmen::Identity{},
              Callbacks{},
              {.max_epochs = 0, .default_root_dir = folder.path},
              Runtime{.device = at::kCPU}};

  Clock::duration run(std::int64_t steps) {
    fulmen::Options options = trainer.options();
    ++options.max_epochs;
    trainer.set_options(options);
    trainer.fit(Loader<Net>{&problem, steps});
    return std::get<Stopwatch>(trainer.context().callbacks()).spent;
  }
};

/// The same with the model of fulmen's layers.
template <class Net>
using ComposedNet = decltype(Net::composed(std::declval<const Net&>()));
template <class Net>
struct ComposedProblem : Problem<ComposedNet<Net>> {
  explicit ComposedProblem(Problem<Net>& p) : Problem<ComposedNet<Net>>{std::make_shared<ComposedNet<Net>>(Net::composed(*p.net)), p.batches} {}
};
template <class Net, class Runtime, class Callbacks>
struct FulmenComposed {
  ComposedProblem<Net> problem;
  Fulmen<ComposedNet<Net>, Runtime, Callbacks> fulmen{problem};

  explicit FulmenComposed(Problem<Net>& p) : problem(p) {}
  Clock::duration run(std::int64_t steps) { return fulmen.run(steps); }
  double mean_loss() const { return problem.mean_loss(); }
};

double nanoseconds(Clock::duration duration) {
  return std::chrono::duration<double, std::nano>(duration).count();
}

/// Says "ready <loss>", then answers each line "<steps>" with "<nanoseconds a step> <nanoseconds before the
/// first and after the last>".
template <class Net, class Peer>
int serve(const std::filesystem::path& file, std::FILE* answers, bool counting) {
  Problem<Net> problem(file);
  Peer peer{problem};
  if (counting) {
    count_instructions("steps", 50, [&](std::int64_t steps) { peer.run(steps); });
    return 0;
  }
  peer.run(kProven);
  const double loss = [&] {
    if constexpr (requires { peer.mean_loss(); }) return peer.mean_loss();
    else return problem.mean_loss();
  }();
  std::fprintf(answers, "ready %.9g\n", loss), std::fflush(answers);
  for (std::string line; std::getline(std::cin, line);) {
    const std::int64_t steps = std::atoll(line.c_str());
    const auto begin = Clock::now();
    const Clock::duration stepping = peer.run(steps), all = Clock::now() - begin;
    std::fprintf(answers, "%.1f %.1f\n", nanoseconds(stepping) / static_cast<double>(steps),
                 nanoseconds(all - stepping));
    std::fflush(answers);
  }
  return 0;
}

template <class Net>
int run_peer(std::string_view peer, std::filesystem::path file, std::FILE* answers) {
  using fulmen::Accuracy, fulmen::MetricMonitor;
  if (peer == "write") return write_data<Net>(file), 0;
  const bool counting = file == "count";
  const TemporaryFolder folder;
  if (counting) write_data<Net>(file = folder.path / "data.pt");
  if (peer == "plain") return serve<Net, Plain<Net>>(file, answers, counting);
  if (peer == "expert") return serve<Net, Expert<Net>>(file, answers, counting);
  if (peer == "barebones") {
    return serve<Net, Fulmen<Net, fulmen::Runtime<>, std::tuple<Stopwatch>>>(file, answers, counting);
  }
  struct Accuracies : MetricMonitor<Accuracy> {
    Accuracies() : MetricMonitor(Accuracy{}) {}
  };
  using Callbacks = std::tuple<Stopwatch, Accuracies>;
  if (peer == "fulmen") return serve<Net, Fulmen<Net, fulmen::DefaultRuntime, Callbacks>>(file, answers, counting);
  if (peer == "composed") return serve<Net, FulmenComposed<Net, fulmen::DefaultRuntime, Callbacks>>(file, answers, counting);
  if (peer == "composed-barebones") {
    return serve<Net, FulmenComposed<Net, fulmen::Runtime<>, std::tuple<Stopwatch>>>(file, answers, counting);
  }
  if constexpr (requires(const Net& net) { net.linears(); }) {
    if (peer == "hand") return serve<Net, Hand<Net>>(file, answers, counting);
  }
  std::fprintf(stderr, "step_bench: no peer '%s'\n", std::string(peer).c_str());
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(
        stderr,
        "step_bench PEER MODEL THREADS FILE|count\n"
        "PEER: write (makes FILE), plain, expert, barebones, fulmen, composed, composed-barebones, hand (MLPs only)\n"
        "MODEL: micro, mlp, mlp256, cnn, transformer\n"
        "count: makes data of its own, runs some steps and then twice as many; to be run under callgrind\n");
    return 2;
  }
  // What fulmen prints goes where errors go, so that a driver can make that a terminal.
  std::FILE* answers = fdopen(dup(STDOUT_FILENO), "w");
  if (answers == nullptr || dup2(STDERR_FILENO, STDOUT_FILENO) < 0) return 2;
  const std::string_view peer = argv[1], model = argv[2];
  at::set_num_threads(std::atoi(argv[3]));
  try {
    if (model == "micro") return run_peer<Mlp<4, 8, 2, 8>>(peer, argv[4], answers);
    if (model == "mlp") return run_peer<Mlp<784, 64, 10, 64>>(peer, argv[4], answers);
    if (model == "mlp256") return run_peer<Mlp256>(peer, argv[4], answers);
    if (model == "cnn") return run_peer<Cnn>(peer, argv[4], answers);
    if (model == "transformer") return run_peer<Transformer>(peer, argv[4], answers);
    std::fprintf(stderr, "step_bench: no model '%s'\n", argv[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "step_bench: %s\n", error.what());
  }
  return 2;
}
