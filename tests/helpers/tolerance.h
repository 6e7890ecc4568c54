/* SPDX-License-Identifier: MIT
 * How far an operation may be from its float64 reference: |got - want| <= TOL_x * (the largest |want| of the output, or
 * the sum of the absolute terms where a sum cancels). One table; loosening a line is a written decision. */
#ifndef PX_TESTS_TOLERANCE_H
#define PX_TESTS_TOLERANCE_H

/* One or two roundings of float32 (2^-24 = 6e-8 each): add, scale, dropout. */
#define TOL_F32_ELEMENT 1.5e-7
/* One function within 2 ulp and a few products: activations and their slopes. */
#define TOL_F32_FUNCTION 1e-6
/* Sums of up to about a thousand float32 terms in vector lanes: norms, low-rank products, column sums of 257 rows. */
#define TOL_F32_SUM 2e-6
/* exp and a float32 sum over the vocabulary, pieces of 512: loss and its gradient. */
#define TOL_F32_SOFTMAX 2e-6
/* The log of that sum: an error of the largest score, of up to 256 products, moves it by as much. */
#define TOL_F32_LSE 1e-5
/* Attention: scores, exp and sums of up to 2,300 keys in float32. */
#define TOL_F32_ATTENTION 5e-6
/* The same with bfloat16 inputs and outputs; probabilities may be rounded before they meet the values. */
#define TOL_BF16_ATTENTION 1.2e-2
/* The same in float16, 11 bits: an eighth; what lies below its normal numbers (6e-5) counts for less. */
#define TOL_F16_ATTENTION 1.5e-3
/* Products: a float32 sum of k <= 600 terms, relative to the largest result. */
#define TOL_F32_PRODUCT 3e-6
/* Twenty steps of AdamW in float32, each about ten roundings, relative to the largest value. */
#define TOL_F32_ADAMW 2e-6
/* Logits of a whole model, of the largest, where only the number of rows differs: the product library may sum a row of
 * few in another order, which moves keys and logits by a few roundings a layer (1.3e-6 was seen with three layers). */
#define TOL_F32_PREFIX_TEXT 5e-6
/* One rounding to bfloat16, 8 bits: half of 2^-7 of the result, when the inputs are the same bfloat16 numbers. */
#define TOL_BF16_ROUNDING 4e-3
/* Two attention results of tensor cores that met the same keys in other tiles: probabilities were rounded to bfloat16
 * relative to other maxima, then each output once more: one rounding more than TOL_BF16_ROUNDING
 * (docs/decisions/0002). */
#define TOL_BF16_ORDER 8e-3
/* Finite differences of a float64 reference with step 1e-5: truncation and cancellation. */
#define TOL_DIFFERENCE 1e-7
/* Loss and prefix gradient (relative L2) of a batch against the float64 sum of its rows' alone: each row's own float32
 * roundings through the layers, in another order where it stands alone; sums of up to 300 rows in float32. */
#define TOL_F32_BATCH 5e-6
/* Two dozen steps of AdamW from gradients that are equal to TOL_F32_BATCH: its division by their own size makes the
 * roundings of small gradients visible. */
#define TOL_F32_TRAINED 1e-5
/* Finite differences of the summed float32 loss of a whole model (about 80, so 5e-6 to a few roundings), fourth order
 * with step 0.05 at values of about one, relative to a tensor's largest gradient (0.3 and more): rounding makes up to
 * 3e-4 of it, truncation 1e-4 (at twice the step 1.5e-3, at half of it rounding 6e-4). */
#define TOL_F32_DIFFERENCE 1e-3

#endif
