// Reinforcement learning: the training loader is an environment, its batches are episodes played with the
// policy as it is then.
//
// REINFORCE with a baseline (Williams, 1992) learns to balance a pole on a cart (Barto, Sutton and Anderson,
// 1983). At first the pole falls after 10 or 20 steps; at 500 an episode ends. Many carts run at once, a row
// of a tensor each.
//
//   cmake --preset demo && cmake --build build/demo --target reinforce && build/demo/examples/reinforce
#include <torch/torch.h>

#include <fulmen/fulmen.hpp>

#include <CLI/CLI.hpp>

#include <cstdio>
#include <exception>
#include <memory>
#include <numbers>
#include <utility>
#include <vector>

/// A batch: finished episodes, the steps of all of them one after the other. The loop counts samples by the
/// first member, so that means over batches are means over episodes.
struct Episodes {
  torch::Tensor lengths;  ///< N, the steps of each episode
  torch::Tensor states;   ///< S×4, what the policy saw before each step
  torch::Tensor actions;  ///< S, 1 for a push to the right, 0 for one to the left
  torch::Tensor returns;  ///< S, the discounted sum of the rewards from this step to the end of its episode
};
BOOST_HANA_ADAPT_STRUCT(Episodes, lengths, states, actions, returns);

namespace {

namespace nn = torch::nn;

constexpr std::int64_t kMaxSteps = 500;
constexpr double kSolved = 475, kDiscount = 0.99;

struct Policy : nn::Module {
  nn::Linear hidden{register_module("hidden", nn::Linear(4, 64))};
  nn::Linear out{register_module("out", nn::Linear(64, 1))};
  nn::Linear baseline_hidden{register_module("baseline_hidden", nn::Linear(4, 64))};
  nn::Linear baseline_out{register_module("baseline_out", nn::Linear(64, 1))};

  /// The log-odds of a push to the right, for states N×4.
  torch::Tensor forward(const torch::Tensor& states) { return out(torch::tanh(hidden(states))).squeeze(1); }
  /// The return to be expected from there.
  torch::Tensor baseline(const torch::Tensor& states) {
    return baseline_out(torch::tanh(baseline_hidden(states))).squeeze(1) / (1 - kDiscount);
  }

  torch::Tensor training_step(fulmen::Context& ctx, const Episodes& batch) {
    const torch::Tensor expected = baseline(batch.states);
    torch::Tensor advantage = batch.returns - expected.detach();
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-6);
    const fulmen::BCEWithLogits minus_log_probability{.reduction = fulmen::Reduction::none};
    const torch::Tensor policy_loss =
        (minus_log_probability(forward(batch.states), batch.actions) * advantage).mean();
    const torch::Tensor baseline_loss = torch::mse_loss(expected, batch.returns);
    ctx.log("train/length", batch.lengths.mean(), {.prog_bar = true, .on_step = false, .on_epoch = true});
    return policy_loss + baseline_loss * (1 - kDiscount) * (1 - kDiscount);
  }

  void on_train_epoch_end(fulmen::Context& ctx) {
    if (ctx.metrics().find("train/length") >= kSolved) ctx.request_stop();
  }

  void test_step(fulmen::Context& ctx, const Episodes& batch) {
    ctx.log("test/length", batch.lengths.mean());
  }
};

/// The loader. A batch is played when operator* asks for it: with a policy that has learnt from the batch before.
class CartPole {
 public:
  /// @param batches  in an epoch
  /// @param episodes in a batch
  /// @param explore  whether to draw actions from the policy, or always to take the likelier one
  CartPole(std::shared_ptr<Policy> policy, std::int64_t batches, std::int64_t episodes, bool explore)
      : policy_(std::move(policy)), batches_(batches), episodes_(episodes), explore_(explore) {}

  struct Iterator {
    const CartPole* environment;
    std::int64_t batch;
    Episodes operator*() const { return environment->play(); }
    Iterator& operator++() { return ++batch, *this; }
    bool operator!=(const Iterator& other) const { return batch != other.batch; }
  };
  Iterator begin() const { return {this, 0}; }
  Iterator end() const { return {this, batches_}; }
  std::int64_t size() const { return batches_; }

 private:
  Episodes play() const {
    const torch::NoGradGuard no_grad;
    const auto like = policy_->out->weight.options();  // the module may live on a GPU
    torch::Tensor state = torch::rand({episodes_, 4}, like) * 0.1 - 0.05;
    torch::Tensor balanced = torch::ones({episodes_}, like.dtype(torch::kBool));
    std::vector<torch::Tensor> states, actions, played;
    for (std::int64_t t = 0; t < kMaxSteps && balanced.any().item<bool>(); ++t) {
      const torch::Tensor chance = policy_->forward(state).sigmoid();
      const torch::Tensor threshold = explore_ ? torch::rand_like(chance) : torch::full_like(chance, 0.5);
      const torch::Tensor action = (chance > threshold).to(like);
      states.push_back(state);
      actions.push_back(action);
      played.push_back(balanced);
      state = step(state, action);
      const torch::Tensor tilt = state.select(1, 2).abs(), position = state.select(1, 0).abs();
      balanced = balanced & (position < 2.4) & (tilt < 12 * std::numbers::pi / 180);
    }
    const torch::Tensor mask = torch::stack(played);  // T×N, as are the next
    const torch::Tensor rewards = mask.to(like);      // 1 for each step
    torch::Tensor returns = torch::empty_like(rewards), sum = torch::zeros({episodes_}, like);
    for (std::int64_t t = rewards.size(0) - 1; t >= 0; --t) returns[t] = sum = rewards[t] + kDiscount * sum;
    return {rewards.sum(0), torch::stack(states).index({mask}), torch::stack(actions).index({mask}),
            returns.index({mask})};
  }

  /// One step. A state is: the cart's position and velocity, the pole's angle and angular velocity.
  static torch::Tensor step(const torch::Tensor& state, const torch::Tensor& action) {
    constexpr double gravity = 9.8, pole = 0.1, total = 1.1, half_length = 0.5, push = 10;  // m/s², kg, m, N
    constexpr double seconds = 0.02;
    const torch::Tensor spin = state.select(1, 3), angle = state.select(1, 2);
    const torch::Tensor sin = angle.sin(), cos = angle.cos();
    const torch::Tensor force = ((action * 2 - 1) * push + pole * half_length * spin.square() * sin) / total;
    const torch::Tensor angular =
        (gravity * sin - cos * force) / (half_length * (4.0 / 3.0 - pole / total * cos.square()));
    const torch::Tensor linear = force - pole * half_length / total * angular * cos;
    return state + seconds * torch::stack({state.select(1, 1), linear, spin, angular}, 1);
  }

  std::shared_ptr<Policy> policy_;
  std::int64_t batches_, episodes_;
  bool explore_;
};

}  // namespace

int main(int argc, char** argv) try {
  fulmen::Options options{.max_epochs = 40, .name = "reinforce"};
  std::uint64_t seed = 0;

  CLI::App app{"Learns to balance a pole on a cart from episodes that it plays."};
  app.set_help_flag("-h,--help", "print this help");
  app.add_option("--epochs", options.max_epochs, "epochs of 5 batches, at the most; ends when solved")
      ->capture_default_str()->check(CLI::PositiveNumber);
  app.add_option("--seed", seed, "the same seed gives the same numbers")->capture_default_str();
  app.add_option("--runs", options.default_root_dir, "where the run's folder is made")->capture_default_str();
  CLI11_PARSE(app, argc, argv);

  at::set_num_threads(1);  // so small a network is no work for two
  fulmen::seed_everything(seed);
  const auto policy = std::make_shared<Policy>();
  const CartPole training(policy, 5, 16, true), testing(policy, 1, 100, false);

  fulmen::Trainer trainer{
      policy,  // shared with the environments
      fulmen::none, fulmen::Adam{.lr = 1e-2}, fulmen::none, fulmen::Identity{}, fulmen::callbacks(), options};
  const double before = trainer.test(testing).front().value;
  trainer.fit(training);
  const double after = trainer.test(testing).front().value;
  std::printf("\nmean length of 100 episodes: %.1f steps before, %.1f after %lld updates\n", before, after,
              static_cast<long long>(trainer.context().global_step()));
} catch (const std::exception& error) {
  std::fprintf(stderr, "reinforce: %s\n", error.what());
  return 1;
}
