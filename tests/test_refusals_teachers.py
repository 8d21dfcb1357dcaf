"""Teachers that are brought along, or are no network, and do not fit: refused in one line, before any training."""

from pathlib import Path

import pytest

from tests.conftest import NO_WIDTH, TINY, Command, Refused


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            "teacher.name=folder",
            "teacher: folder needs a folder with a trained network: set teacher.weights=PATH",
        ),
        ("teacher.name=file", "teacher: file needs a file of its outputs: set teacher.weights=PATH"),
        (
            "teacher.name=file teacher.weights=outputs.csv soft_targets=live",
            "soft_targets=live needs a teacher that can be asked; teacher=file has only its outputs",
        ),
        (
            "teacher.name=ensemble",
            "teacher: ensemble needs params.members: name of each member -> its settings, where they are not the"
            " teacher's",
        ),
        (
            "teacher.name=ensemble 'teacher.params={members:{a:{name:resnet8,params:{widht:4}}}}'",
            "teacher.params.members.a: resnet8 has no parameter 'widht'. Did you mean 'width'? It has: width",
        ),
        (
            "teacher.name=ensemble 'teacher.params={members:{a:{name:mlp,epochs:-1}}}'",
            "teacher.params.members.a.epochs=-1: must be greater than or equal to 0",
        ),
        (
            "teacher.name=ensemble 'teacher.params={members:{a:{name:mlp}},weights:{b:1}}'",
            "teacher: params: weights name b, but the members are a",
        ),
        (
            "teacher.name=ensemble 'teacher.params={members:{a:{name:mlp}},averge:logits}'",
            "teacher: ensemble has no parameter 'averge'. Did you mean 'average'? It has: members, average, weights",
        ),
        (
            "teacher.name=sklearn/RandomForestClasifier",
            "scikit-learn has no classifier 'RandomForestClasifier'. Did you mean 'RandomForestClassifier'",
        ),
        (
            "teacher.name=sklearn/RandomForestClassifier 'teacher.params={n_estimator:3}'",
            "RandomForestClassifier has no parameter 'n_estimator'. Did you mean 'n_estimators'? It has: bootstrap",
        ),
    ],
)
def test_teachers_that_are_not_there(words: str, text: str, refused: Refused) -> None:
    """A folder or file must be named, members and estimators must exist with these parameters."""
    Path("outputs.csv").write_text("id,0,1,2,3\n0,1,2,3,4\n")
    assert refused(f"run {NO_WIDTH} {words}").startswith(text)


@pytest.mark.parametrize("name", ["file", "folder", "sklearn/SVC"])
def test_only_networks_are_trained_as_students(name: str, refused: Refused) -> None:
    """Other sources can only teach."""
    plain = tuple(word for word in TINY if "student.params" not in word)
    text = "{0}.name={1}: only a network can be trained as {0}"
    assert refused(f"run student.name={name}", plain) == text.format("student", name)
    assert refused(f"run assistant.name={name}", plain) == text.format("assistant", name)


def test_a_class_map_that_fits_nothing(kdistill: Command, refused: Refused) -> None:
    """Also of a teacher that is not trained yet: its classes will be the data's."""
    assert refused("run teacher.class_map={cat:dog}") == (
        "teacher.class_map: the teacher has no class 'cat'. It has '0', '1', '2', '3';"
        " teacher.class_map='{tabby: cat}' says which teacher class is which student class"
    )


@pytest.fixture
def small_teacher(kdistill: Command) -> str:
    """The folder of a teacher that knows two of the tiny data set's four classes."""
    assert kdistill("train-teacher teacher.epochs=0 dataset.classes=2 runs=small").code == 0
    (folder,) = Path("small/artifacts/teacher").glob("resnet8-*")
    return str(folder)


@pytest.mark.parametrize(
    "loss", ["dkd", pytest.param("nkd", marks=pytest.mark.slow), pytest.param("ofa", marks=pytest.mark.slow)]
)
def test_a_teacher_that_lacks_classes(
    loss: str, small_teacher: str, kdistill: Command, refused: Refused
) -> None:
    """It cannot say how sure it is of a target that it does not know; KD works with what it knows."""
    teacher = (
        f"{NO_WIDTH} teacher.name=folder teacher.weights={small_teacher} student.epochs=1 finetune.epochs=0"
    )
    assert refused(f"run {teacher} loss={loss}").splitlines()[-1] == (
        f"loss={loss} needs a teacher that knows the class of every image, and this one knows 2 of 4; use loss=kd"
    )
    assert kdistill(f"run {teacher} loss=kd").code == 0


def test_a_class_map_belongs_to_the_first_teacher(small_teacher: str, kdistill: Command) -> None:
    """The next generation's teacher is a student, with the data's own classes."""
    teacher = f"{NO_WIDTH} teacher.name=folder teacher.weights={small_teacher}"
    words = "teacher.class_map={0:3,1:2} generations=2 student.epochs=1 finetune.epochs=0"
    said = kdistill(f"run {teacher} {words}")
    assert said.code == 0, said.err
    assert len(list(Path("runs/artifacts/student").glob("cnn-*/"))) == 2
