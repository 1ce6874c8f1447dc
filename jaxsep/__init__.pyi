# The public names in the order of the data. Editors and type checkers read this file; so does `__init__.py`.
# isort: skip_file

from jaxsep.files import AudioError as AudioError, OutputFolder as OutputFolder
from jaxsep.progress import NotebookProgress as NotebookProgress, Progress as Progress
from jaxsep.audio import (
    demo_recording as demo_recording,
    read_audio as read_audio,
    resample as resample,
    write_audio as write_audio,
)
from jaxsep.metrics.bss_eval import (
    SeparationScores as SeparationScores,
    sdr_sir_sar_filter as sdr_sir_sar_filter,
    sdr_sir_sar_gain as sdr_sir_sar_gain,
)
from jaxsep.metrics.matching import best_permutation as best_permutation
from jaxsep.metrics.si_sdr import (
    permutation_invariant_si_sdr as permutation_invariant_si_sdr,
    si_sdr as si_sdr,
    si_sdr_improvement as si_sdr_improvement,
)
from jaxsep.metrics.snr import frame_snr as frame_snr, snr as snr
from jaxsep.numerics.adjoint import Implicit as Implicit, Unrolled as Unrolled
from jaxsep.numerics.devices import over_frames as over_frames
from jaxsep.signal.axes import LinearAxis as LinearAxis, LogAxis as LogAxis
from jaxsep.signal.stft import GaussianSTFT as GaussianSTFT
from jaxsep.signal.peaks import PeakPursuit as PeakPursuit
from jaxsep.signal.log_frequency import log_frequency_spectrogram as log_frequency_spectrogram
from jaxsep.signal.filterbanks import (
    constant_q_spectrogram as constant_q_spectrogram,
    mel_spectrogram as mel_spectrogram,
)
from jaxsep.signal.masks import griffin_lim as griffin_lim, ratio_masks as ratio_masks
from jaxsep.tones.tones import Tones as Tones
from jaxsep.tones.dictionary import (
    Dictionary as Dictionary,
    random_instruments as random_instruments,
)
from jaxsep.tones.instruments import Instruments as Instruments
from jaxsep.tones.rendering import render as render, render_instruments as render_instruments
from jaxsep.pursuit.loss import LiftedLoss as LiftedLoss
from jaxsep.pursuit.refinement import (
    LevenbergMarquardt as LevenbergMarquardt,
    ToneFit as ToneFit,
    refine as refine,
)
from jaxsep.pursuit.tone_pursuit import TonePursuit as TonePursuit
from jaxsep.blasso.patterns import Patterns as Patterns
from jaxsep.blasso.spikes import Spikes as Spikes
from jaxsep.blasso.projection import Projection as Projection
from jaxsep.blasso.certificate import alpha_max as alpha_max
from jaxsep.blasso.lasso import BeurlingLasso as BeurlingLasso
from jaxsep.blasso.support import debias as debias, support as support
from jaxsep.blasso.path import LassoPath as LassoPath, lasso_path as lasso_path
from jaxsep.learning.learner import DictionaryLearner as DictionaryLearner
from jaxsep.learning.restarts import learn_dictionaries as learn_dictionaries
from jaxsep.learning.fit import fit_dictionary as fit_dictionary, fit_timbre as fit_timbre
from jaxsep.learning.names import name_instruments as name_instruments
from jaxsep.notes.note import Note as Note
from jaxsep.notes.notes import NoteRule as NoteRule, find_notes as find_notes
from jaxsep.notes.score import Rest as Rest, Score as Score
from jaxsep.notes.formats import write_midi as write_midi
from jaxsep.notes.reading import read_notes as read_notes
from jaxsep.notes.alignment import align_notes as align_notes
from jaxsep.search.voices import VoiceModel as VoiceModel
from jaxsep.search.hypotheses import deepen as deepen
from jaxsep.search.alternation import Alternation as Alternation
from jaxsep.neural.settings import NeuralSettings as NeuralSettings
from jaxsep.neural.unet import UNet as UNet
from jaxsep.neural.network import PolicyNetwork as PolicyNetwork, ToneNetwork as ToneNetwork
from jaxsep.neural.policy import Policy as Policy
from jaxsep.neural.losses import PredictionLoss as PredictionLoss
from jaxsep.neural.estimator import Estimator as Estimator
from jaxsep.neural.imitation import Guide as Guide
from jaxsep.neural.training import Trainer as Trainer
from jaxsep.separation.settings import (
    SeparationSettings as SeparationSettings,
    PursuitSettings as PursuitSettings,
)
from jaxsep.separation.result import Separation as Separation
from jaxsep.separation.chain import PursuitSeparator as PursuitSeparator
from jaxsep.separation.separate import separate as separate, separate_parts as separate_parts
from jaxsep.separation.neural import separate_neural as separate_neural
from jaxsep.results.read import read_instruments as read_instruments
from jaxsep.report.spectrograms import spectrogram_figure as spectrogram_figure
from jaxsep.report.plots import overview as overview

__version__: str
