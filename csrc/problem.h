// What a kernel is given: plain structures of pointers, sizes and strides (in elements), and the sizes in which it
// works.
//
// Takes what the binding reads from tensors; each structure says of each pointer what lies there and whether it may be
// null. Gives kernels all that they know. Refuses to own anything: the memory is that of the tensors of a call.

#pragma once
#include <atomic>
#include <cstdint>

constexpr int LANES = 32;    // accumulators of a row; rows side by side
constexpr int ROWS = 128;    // rows of a tile, at most
constexpr int CLASSES = 32;  // classes of a tile that are worked on at a time, at most

// Up to this many classes rows are taken as tiles, even where each of them lies in one piece. Forward, and forward with
// its gradient, have bounds of their own: `few_classes` of Kernels.
constexpr int64_t FEW_CLASSES = 64;

// So few rows do not fill a vector of rows. They are taken one by one if they have a vector of classes.
constexpr int64_t FEW_ROWS = 12;

// What a row of a softmax loss costs once, in elements: two logarithms and a division.
constexpr int64_t EACH_ROW = 8;

// Of class indices and nothing else: the most classes of a tile (plain.h); and of rows that are taken together
// (plain_rows.h) how many numbers they have, and up to how many bytes the slopes of one are never written past the
// caches.
constexpr int64_t AT_ONCE = 256, TOGETHER = 4096, SHORT_BYTES = 2048;

// KEPT: up to this many e^x of a tile are kept for its gradient. KEPT_TILE: how many R a chunk of classes takes then.
constexpr int64_t KEPT = 1024 * ROWS, KEPT_TILE = CLASSES * ROWS + CLASSES * LANES + ROWS + 16;

// Elements that are worked on at a time, in the nearest cache: of a row, of a binary loss. Rows of fewer elements than
// SHORT_ROW, whose weights repeat, share such a block.
constexpr int64_t BLOCK = 2048, BINARY_BLOCK = 1024, SHORT_ROW = 256;

// Of a product: features of X that lie together, and columns of G that are laid out at a time.
constexpr int64_t FEATURES = 48, GROUP = 32;

enum DType { F32, F64, BF16, F16, DTYPES };  // of logits, gradients and probability targets
enum Penalty { NO_PENALTY, FOCAL, POLY1, GCE, SCE, TAYLOR };
enum IndexType { I8, I16, I32, I64, U8, U16, U32, U64 };

// Rows are numbered outer-major: row = o * inner + i. A tensor of logits has (o, class, i) at these strides.
struct Strides {
    int64_t outer, classes, inner;
};

// Softmax cross entropy. `R` below is float, or double for float64 logits.
struct Softmax {
    int64_t outer, inner, classes;
    const void* logits;
    Strides at;
    const void* target;  // indices, one a row and contiguous; or probabilities with strides of their own
    int64_t index_type;  // an IndexType, or -1 for probabilities
    bool wide_target;    // probabilities are R, not of the dtype of the logits
    Strides target_at;
    const void* weight;  // R, one a class, or null
    double weight_sum;   // Σ c
    const void* spread;  // R, one a class: the weights that smoothing spreads over, or null for c
    int64_t ignore_index;
    double smoothing, share;  // ε and ε / C
    bool shard;               // these are some of the classes, and an index of -1 is that of one elsewhere

    // x' = (cap tanh(x / cap) + bias - margin at the target) / T; see family.h
    double cap, margin, per_temperature, z_loss;
    bool usual_numbers;  // whether each of NUMBERS (bind_softmax.h) has its default
    const void* bias;    // R, one a class, or null; if some are masked, the largest R for those
    bool masked;
    int64_t penalty;  // a Penalty and its parameters
    double penalty_a, penalty_b;
    bool penalises_all() const { return penalty != NO_PENALTY && (index_type < 0 || smoothing != 0); }
    bool transformed() const { return cap != 0 || margin != 0 || per_temperature != 1 || bias; }

    void *top, *log_sum;  // R, one a row: written forward, read backward

    // forward
    void *loss, *row_weight;    // R, one a row, or null
    double* partial;            // two sums a tile
    const void* sample_weight;  // R, one a row: what it weighs in a sum and its gradient; or null
    std::atomic<bool>* out_of_range;
    void *entropy, *target_log_prob;  // R, one a row: statistics; all four, or null
    uint8_t* correct;                 // whether the target's class is the first of the most probable ones
    int64_t* predicted;               // that first one, or NOT_PREDICTED
    void* mass;                       // R, one a row: Σ w, without a penalty; or null

    // backward
    const void* grad;  // R, one a row or one number
    bool grad_rows;
    void* grad_logits;  // or null
    Strides grad_at;
    void* grad_target;  // of the dtype of the target, or null
    Strides grad_target_at;
    const void* elsewhere;  // R, one a row: its mass on other shards of the classes; or null

    // both at once
    void* scratch;  // this thread's, aligned as vectors are: `scratch_size` R
    bool stream;    // write the gradient past the caches

    // Rows with many classes that lie side by side are taken one after the other, everything else as tiles of LANES or
    // ROWS rows side by side.
    bool by_row;
    int64_t rows_per_tile;
    int64_t rows() const { return outer * inner; }
    // How much there is to do, in elements.
    int64_t work() const { return rows() * (classes + EACH_ROW); }
    // How many classes of a tile are worked on at a time: parts of one size. C = 100 is 4 times 25.
    int64_t chunks() const { return (classes + CLASSES - 1) / CLASSES; }
    int64_t chunk() const { return (classes + chunks() - 1) / chunks(); }
    // What is kept of a class: its e^x, where all are penalised the weight that this gives it, and the slope of its
    // cap. Where the latter two lie among them; 0 where there is none.
    int64_t pulls_at() const { return penalises_all() ? 1 : 0; }
    int64_t bends_at() const { return cap > 0 ? 1 + pulls_at() : 0; }
    int64_t kept_numbers() const { return 1 + int64_t(penalises_all()) + int64_t(cap > 0); }
    int64_t kept_row() const { return (classes / LANES + 2) * LANES; }
    int64_t scratch_size() const {
        // Of the rows of a tile, and of those before them, whose slopes may wait for these.
        if (by_row && plain()) return 2 * rows_per_tile * kept_row();
        if (by_row) return kept_numbers() * kept_row() + classes / (BLOCK - LANES) + 1;
        return keeps_tiles() ? kept_numbers() * chunks() * KEPT_TILE : 0;
    }
    // Class indices, weights of rows and classes, and nothing else; of rows, short ones that are taken together. Their
    // slopes are formed of what registers hold, so that nothing reads top and log_sum.
    bool plain() const {
        const bool usual = usual_numbers && smoothing == 0 && penalty == NO_PENALTY && !transformed() && !shard;
        const bool short_rows = by_row ? rows_per_tile > 1 : classes <= AT_ONCE;
        return index_type >= 0 && short_rows && usual && !mass && !elsewhere && !entropy && !grad_target;
    }
    bool keeps_tiles() const { return kept_numbers() * classes * rows_per_tile <= KEPT; }
    int64_t tiles() const { return (rows() + rows_per_tile - 1) / rows_per_tile; }
};

// Binary cross entropy over outer × inner elements; logits, target and gradients are contiguous.
struct Binary {
    int64_t outer, inner;
    const void *logits, *target;
    bool wide_target;
    const void *weight, *pos_weight;  // R, or null, with strides over rows of so many elements and within them
    int64_t weight_at[2], pos_weight_at[2], row;
    void* loss;       // R, one an element, or null
    double* partial;  // a sum for every block, or null; with `grad`, both are computed at once
    const void* grad;
    bool grad_rows;
    bool narrow_loss, narrow_grad;  // losses, and a gradient of each, of the dtype of the logits and not R
    void *grad_logits, *grad_target;
    bool stream;  // write the gradient past the caches

    int64_t blocks_per_outer() const { return (inner + BINARY_BLOCK - 1) / BINARY_BLOCK; }
    int64_t blocks() const { return outer * blocks_per_outer(); }
};

// sums (columns, features) += Gᵀ X of G (rows, columns) and X (rows, features), or = where `first`. X comes as tiles of
// FEATURES features of pairs of rows; see bind_product.h.
struct Product {
    const uint16_t* g;
    int64_t g_step;
    const uint32_t* x;
    float* sums;
    int64_t rows, columns, features;
    bool first;

    int64_t groups() const { return (columns + GROUP - 1) / GROUP; }
};

// Contiguous numbers that are to be multiplied by one, in their place.
struct Scaled {
    void* numbers;
    int64_t size;
    double factor;

    int64_t blocks() const { return (size + BLOCK - 1) / BLOCK; }
};

// One instruction set's kernels, by dtype of the logits. They work on tiles (Softmax) or blocks (others) [begin, end).
struct Kernels {
    const char* name;
    // Up to which tiles pay: the longer vectors are, the more a row's fixed costs weigh, of which rows that are taken
    // together (plain_rows.h) have fewer.
    int64_t few_classes[DTYPES], few_plain[DTYPES];
    int64_t together[DTYPES];  // up to how many classes rows of a plain problem are taken together
    void (*softmax_forward[DTYPES])(const Softmax&, int64_t begin, int64_t end);
    void (*softmax_backward[DTYPES])(const Softmax&, int64_t begin, int64_t end);
    void (*softmax_both[DTYPES])(const Softmax&, int64_t begin, int64_t end);
    void (*binary[DTYPES])(const Binary&, int64_t begin, int64_t end);
    void (*scale[DTYPES])(const Scaled&, int64_t begin, int64_t end);
    void (*accumulate)(const Product&, int64_t begin, int64_t end);  // or null
    int64_t (*count)(const int64_t* labels, int64_t rows, int64_t ignored, int64_t classes, int64_t& wrong);
};
