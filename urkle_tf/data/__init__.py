"""From images to batches of views: `sources`, `augment`, `pipeline`.

```python
from urkle_tf.data import augment, pipeline, sources

source = sources.load("digits")
recipe = augment.from_spec("simclr(strength=0.5, flip=false)")
views = pipeline.views(source, recipe, batch_size=64, seed=0)  # an endless tf.data.Dataset
```
"""

# Both modules add a recipe to `augment.RECIPES`.
from urkle_tf.data import augmix as augmix
from urkle_tf.data import keras_cv_recipes as keras_cv_recipes
