"""Function words of the languages that alt-text is written in, besides those of English (common_words.py).

They name nothing when they stand by themselves, though Wikidata has a place, a person or a song of that name ("Iki",
"Uma", "Egy"). Written by hand from the closed classes of each grammar: articles, pronouns, prepositions, conjunctions,
auxiliary verbs, numerals, the commonest adverbs. A text does not say its language, so a word in Latin letters is left
out that is a thing, a name or an abbreviation of some renown elsewhere, such as "hat" (Hungarian six), "door" (Dutch
through), "lima" (Indonesian five) or "ESA" (Spanish that).
"""

from __future__ import annotations

from collections.abc import Mapping

from wikidata.common_words import FUNCTION_WORDS
from wikidata.surface import normal_form

_WORDS = {
    "de": """
        der die das den dem des ein eine einen einem einer eines kein keine keinen keiner und oder aber sondern denn
        dass wenn ob als wie wo wer was wann warum ich du er sie es wir ihr dich ihn uns euch dir ihm ihnen sich mein
        meine dein seine seinen seiner ihre ihren ihrem ihrer unser unsere euer dieser diese dieses diesen diesem
        jeder jede jedes jener welche welcher welches alle alles viele vieles wenige einige mehr mehrere nichts etwas
        jemand niemand zu zum zur im am ins ans vom beim auf aus bei mit nach seit von vor hinter neben zwischen über
        unter durch für gegen ohne um während wegen trotz bis ist sind war waren wird werden wurde wurden haben hatte
        können kann muss soll nicht nur auch noch schon sehr hier dort jetzt immer wieder nie heute zwei drei vier
        fünf sechs sieben acht neun zehn sowie bzw
        """,
    "fr": """
        le la les un une des du de et ou où mais donc ni que qui quoi dont quand comment pourquoi je tu il elle on
        nous vous ils elles me te se lui leur leurs toi soi eux mon ma mes ton ta tes son sa ses notre nos votre vos
        ce cet cette ces celui celle ceux cela ça à au aux en dans sur sous avec sans pour par entre vers chez depuis
        pendant avant après devant derrière contre selon près est sont était étaient être avoir avait ont ai as fait
        pas plus très bien aussi encore toujours jamais ici là tout toute tous toutes même autre autres chaque
        plusieurs quelques deux trois quatre cinq sept huit neuf travers
        """,
    "es": """
        el la los las lo un una unos unas y e o u pero sino porque que quien cual cuando donde como yo tú él ella
        ello nosotros ustedes ellos ellas me te se nos le les mi mis tu tus su sus nuestro nuestra este esta esto
        estos estas ese esos esas aquel aquella a al ante bajo con de del desde en entre hacia hasta para por según
        sin sobre tras través es son era eran fue fueron ser está están estar estaba ha había muy más menos también
        ya no sí todo toda todos todas otro otra otros otras cada algún alguna algunos nada mucho muchos muchas dos
        tres cuatro cinco seis siete ocho nueve diez aquí allí
        """,
    "pt": """
        o a os as um uma uns umas e ou mas porque que quem qual quando onde como eu tu ele ela nós vós eles elas me
        te se lhe meu minha seu sua seus suas nosso nossa este esta isto esse essa isso aquele aquela ao aos à às de
        do da dos das dum duma em no na nos nas num numa nuns numas por pelo pela pelos pelas para com sem sob sobre
        entre até desde após ante é são era eram foi foram ser está estão estar tem têm há muito muita muitos muitas
        mais menos também já não todo toda todos todas outro outra outros cada algum alguma nada dois duas três
        quatro cinco seis sete oito nove dez aqui
        """,
    "it": """
        il lo la i gli le un uno una di del dello della dei degli delle a al alla ai agli alle da dallo dalla dai
        dagli dalle in nel nello nella nei negli nelle su sul sullo sulla sui sugli sulle con per tra fra e ed o ma
        se che chi cui quale quando come perché io tu lui lei noi voi loro mi ti si ci vi ne mio tuo suo sua suoi
        nostro questo questa questi queste quello quella quelli è sono era erano essere ha hanno stato stata non più
        molto molta molti molte anche già ancora sempre tutto tutta tutti tutte altro altra altri altre ogni alcuni
        due tre quattro cinque sei sette nove dieci sopra dietro davanti attraverso verso qui
        """,
    "nl": """
        de het een en of maar want dat die dit deze wie wat waar wanneer hoe waarom ik jij je hij zij ze wij we
        jullie u mij hem haar ons mijn jouw zijn onze van voor met op te aan bij uit naar over onder tussen tegen
        zonder om tijdens sinds vanaf achter naast langs is was waren bent wordt worden werd heeft hebben had kunnen
        moet zal niet geen ook nog al wel zeer heel veel alle alles andere elke ieder enkele iets niets hier daar
        twee drie vier vijf zes zeven acht negen tien
        """,
    "sv": """
        en ett den det de och eller men att som vad vem var när hur varför du vi ni dem mig honom henne oss er sig
        mitt mina din sin sitt sina hennes deras denna detta dessa i på av med till från för om ur hos vid mot under
        över mellan bakom framför utan genom efter före är blir bli blev har hade inte också mycket många alla allt
        andra varje några här där två tre fyra fem sju åtta tio ut upp ner in
        """,
    "da": """
        og eller men at som hvad hvem hvor når hvordan jeg dem mig hende os sig mit sin sit sine på af med til fra om
        ved under over mellem foran uden gennem efter er var bliver har havde skal ikke også meget mange alle hver
        nogle her to tre fem seks syv otte ni ti
        """,
    "pl": """
        i oraz a lub lecz że żeby czy jak jaki jaka jakie kto co kiedy gdzie dlaczego ja ty on ona my wy oni one mnie
        mi ciebie ci go jej ją im ich nas was wam się mój moja moje twój swój swoje jego nasz wasz ten ta to tego tej
        tych tym te w we z ze na do od dla po przy przez za nad przed między bez o u ku jest są był była było były
        być będzie ma mają nie tak też także bardzo już jeszcze tylko zawsze każdy wszystko wszyscy inny inne dwa
        dwie trzy cztery pięć sześć siedem osiem dziewięć dziesięć tu tam oto
        """,
    "cs": """
        a i nebo ani že aby když jak jaký kdo co kdy proč já ty on ona my vy oni mě mi tě ho ji jí je ním nás nám vás
        vám se si můj moje tvůj svůj jeho její jejich náš váš ten ta to tento tato těch v ve z ze na do od pro po při
        přes za nad před mezi bez o u k ke s jsou byl byla bylo byly být bude má mají ne také velmi už ještě vždy
        každý vše všechno jiný dva dvě tři čtyři pět šest sedm osm devět deset tady tam
        """,
    "hu": """
        a az egy és vagy de hogy ha mert ki mi mikor hol hogyan miért én te ő ti ők engem téged őt minket nekem neki
        ez ezt azt ezek azok ezen azon van vannak volt voltak lesz nem nincs is még már csak nagyon mindig más több
        sok néhány alatt felett fölött között mellett előtt mögött után óta nélkül szerint át be fel le két kettő
        három négy öt hét nyolc kilenc tíz itt
        """,
    "fi": """
        ja tai mutta että kun koska kuin kuka mikä mitä missä milloin miten miksi minä sinä hän me te he minun sinun
        hänen meidän heidän se tämä tuo nämä ne ei ole on oli ovat olivat olla myös vielä jo vain aina hyvin kaikki
        jokainen muu joka jotka alla päällä vieressä edessä takana kanssa ilman ennen jälkeen läpi sekä yksi kaksi
        kolme neljä viisi kuusi seitsemän kahdeksan yhdeksän kymmenen täällä siellä
        """,
    "tr": """
        ve veya ya da de ile fakat çünkü ki mi mı mü ne hangi nasıl neden niçin nerede sen o biz siz onlar bana ona
        bize seni onu bizi benim senin onun bizim bu şu bunu şunu bunun şunun bir için gibi kadar göre doğru karşı
        üzere değil var yok çok daha en az her hiç bazı bütün tüm başka diğer iki üç dört beş altı yedi sekiz dokuz
        on olan olarak oldu burada orada şimdi üzerinde altında içinde
        """,
    "vi": """
        và hoặc nhưng mà vì nếu thì là của với từ đến tới ở trong ngoài trên dưới trước sau giữa bên cạnh qua về tôi
        bạn anh chị em ông bà nó chúng họ ta mình này đó ấy nào gì ai đâu bao nhiêu không có đã đang sẽ được bị rất
        cũng vẫn còn chỉ mỗi mọi các những một hai bốn năm sáu bảy tám chín mười cái con chiếc người
        """,
    "id": """
        dan atau tetapi tapi karena jika kalau bahwa yang ini di ke dari pada dengan untuk oleh tentang antara dalam
        atas bawah depan belakang saya aku kamu anda ia kita mereka siapa mana kapan bagaimana mengapa tidak bukan
        adalah sudah telah sedang akan bisa dapat harus juga masih sangat lebih semua setiap beberapa banyak lain
        satu dua tiga empat enam tujuh delapan sembilan sepuluh seorang sebuah para sini
        """,
    "ru": """
        и а но или да же ли бы что чтобы как если когда где куда откуда почему зачем кто какой какая какие чей я ты
        он она оно мы вы они меня тебя его её нас вас их мне тебе ему ей нам вам им мной себя свой своя свои мой моя
        моё мои твой наш наша ваш этот эта это эти того этого этой тот та те в во на с со к ко о об от до по из за
        под над при у для без про через между перед около после среди против ради есть был была было были быть будет
        нет не ни уже ещё очень тоже также только всё все весь вся всех каждый другой другие самый один одна одно два
        две двое три трое четыре пять шесть семь восемь девять десять здесь там тут
        """,
    "uk": """
        і й та а але або чи що щоб як якщо коли де куди звідки чому навіщо хто який яка які чий я ти він вона воно ми
        ви вони мене тебе його її нас вас їх мені тобі йому їй нам вам їм себе свій своя свої мій моя моє твій наш
        ваш цей ця це ці того цього цієї той те в у на з із зі до від по за під над при для без про через між перед
        біля після серед проти є був була було були бути буде немає не ні вже ще дуже теж також тільки все всі весь
        вся кожен інший один одна одне два дві двоє три троє чотири п'ять шість сім вісім дев'ять десять тут там
        """,
    "el": """
        ο η το οι τα του της των τον την τους τις ένας μια μία ένα ενός μιας έναν και ή αλλά όμως ότι πως που να αν
        όταν γιατί ποιος ποια τι πού πότε εγώ εσύ αυτός αυτή αυτό αυτοί αυτές αυτά εμείς εσείς με μου σε σου μας σας
        στο στη στην στον στους στις στα από για προς χωρίς πριν μετά πάνω κάτω μέσα έξω δίπλα πίσω μπροστά κατά παρά
        ανάμεσα είναι ήταν έχει έχουν θα δεν μην όχι ναι πολύ πιο ακόμα ήδη μόνο πάντα όλα όλοι όλες κάθε άλλος άλλη
        άλλο δύο τρία τρεις τέσσερα πέντε έξι επτά οκτώ εννέα δέκα εδώ εκεί
        """,
    "ar": """
        و في من إلى على عن مع بين تحت فوق أمام خلف وراء بعد قبل عند حول خلال ضد دون بدون حتى منذ لدى نحو أو أم لكن بل
        ثم أن إن لأن كي إذا لو لا لم لن ما ليس هل كيف متى أين لماذا ماذا كم هو هي هم هن نحن أنا أنت أنتم هذا هذه
        هؤلاء ذلك تلك أولئك الذي التي الذين اللواتي هنا هناك كان كانت كانوا يكون تكون قد سوف كل بعض جميع غير مثل أي
        أيضا فقط جدا كما عبر ذات ذو لي له لها لهم به بها فيه فيها منه منها عليه عليها واحد واحدة اثنان اثنين ثلاثة
        أربعة خمسة ستة سبعة ثمانية تسعة عشرة
        """,
    "fa": """
        و یا اما ولی که اگر چون زیرا تا در به از با بر برای بی بدون روی زیر بالا پایین پشت جلو کنار میان بین پیش پس
        درون را من تو او ما شما آنها ایشان این آن اینها همین همان خود هر همه هیچ چند چه چرا کی کجا کدام چگونه است بود
        هست شد شده دارد دارند باشد می نیست نه هم نیز خیلی بسیار فقط دیگر یک دو سه چهار پنج شش هفت هشت ده اینجا آنجا
        """,
    "he": """
        של את על אל אם או גם כי אבל אך לא כן אין יש זה זאת זו אלה אלו הוא היא הם הן אני אתה אתם אנחנו לי לו לה להם
        לנו לך שלי שלו שלה שלהם שלנו בו בה בהם מן עם בין אחרי לפני מאחורי תחת מעל מתחת ליד אצל עד כמו כל כמה רק עוד
        מאוד כבר מה מי מתי איפה איך למה מדוע היה היתה הייתה היו יהיה כאן שם אחד אחת שני שתי שניים שתיים שלוש שלושה
        ארבע ארבעה חמש חמישה שש שישה שבע שבעה שמונה תשע תשעה עשר עשרה
        """,
    "hi": """
        का की के को से में पर ने और या लेकिन मगर कि अगर तो जो जब तब जहाँ वहाँ यहाँ क्या कौन कब कहाँ कैसे क्यों मैं तू
        तुम आप वह यह वे ये हम मेरा मेरी मेरे तेरा हमारा आपका उसका उसकी उसके इसका इसकी इसके उनका उनकी उनके इस उस इन उन
        है हैं था थी थे हो हुआ हुई हुए होना गया गई गए रहा रही रहे कर करके लिए साथ बिना ऊपर नीचे अंदर बाहर पीछे आगे
        बीच तक वाला वाली वाले नहीं न भी ही बहुत सब सभी हर कुछ कोई अन्य एक दो तीन चार पांच पाँच छह सात आठ नौ दस
        """,
    "bn": """
        এবং ও আর বা অথবা কিন্তু যে যদি যখন তখন কি কী কে কেন কবে কোথায় কীভাবে আমি তুমি আপনি সে তিনি আমরা তারা আমার
        তোমার তার তাদের আমাদের এই ঐ ওই এটি এটা সেই এর ওর জন্য থেকে দিয়ে সঙ্গে সাথে উপর উপরে নিচে মধ্যে ভিতরে বাইরে
        পাশে পিছনে সামনে আগে পরে পর্যন্ত ছাড়া না নেই আছে ছিল হয় হয়ে করে করা করছে খুব আরও শুধু সব সকল প্রতি অন্য
        কিছু অনেক এক একটি একটা একজন দুই তিন চার পাঁচ ছয় সাত আট নয় দশ
        """,
    "th": """
        และ หรือ แต่ ที่ ซึ่ง ว่า ถ้า เมื่อ เพราะ ของ ใน บน ใต้ จาก ถึง กับ โดย ด้วย สำหรับ เพื่อ ตาม ระหว่าง หน้า
        หลัง ข้าง ริม ผม ฉัน คุณ เขา เธอ มัน เรา พวก นี้ นั้น นี่ นั่น อะไร ใคร ไหน เมื่อไร อย่างไร ทำไม ไม่ ไม่มี มี
        เป็น อยู่ คือ ได้ กำลัง จะ แล้ว ยัง ก็ มาก ทุก บาง หลาย อื่น หนึ่ง สอง สาม สี่ ห้า หก เจ็ด แปด เก้า สิบ การ
        ความ คน ตัว อัน
        """,
    "lo": """
        ແລະ ຫຼື ແຕ່ ທີ່ ວ່າ ຖ້າ ຂອງ ໃນ ຈາກ ກັບ ໂດຍ ຂ້ອຍ ເຈົ້າ ເຂົາ ນີ້ ນັ້ນ ຫຍັງ ໃຜ ບໍ່ ມີ ເປັນ ຢູ່ ໄດ້ ແລ້ວ
        """,
    "km": """
        និង ឬ ប៉ុន្តែ ដែល ថា នៃ ក្នុង លើ ពី ទៅ ជាមួយ ដោយ ខ្ញុំ អ្នក គាត់ នេះ នោះ អ្វី មិន មាន ជា នៅ បាន ហើយ
        """,
    "my": """
        နှင့် သို့မဟုတ် ဒါပေမယ့် တွင် မှာ မှ သို့ အတွက် ကျွန်တော် သူ ဒီ ထို ဘာ မရှိ ရှိ ဖြစ် သည် ပြီ
        """,
    "zh": """
        我们 你们 他们 她们 它们 自己 这个 那个 这些 那些 这里 那里 这样 那样 什么 怎么 为什么 哪里 哪个 多少 一个
        一些 一样 一起 一种 一次 没有 不是 不能 可以 可能 应该 需要 已经 正在 还是 还有 就是 只是 也是 都是 但是 可是
        不过 而且 并且 或者 因为 所以 如果 虽然 由于 关于 对于 根据 通过 为了 以及 之后 之前 之间 之中 其中 其他 所有
        每个 许多 很多 非常 更加 然后 现在 今天 昨天 明天 上面 下面 里面 外面 前面 后面 旁边 中间 左边 右边 两个 三个
        几个 我們 你們 他們 她們 它們 這個 那個 這些 這裡 那裡 這樣 那樣 什麼 怎麼 為什麼 哪裡 哪個 一個 一樣 一種
        沒有 應該 已經 還是 還有 不過 並且 因為 雖然 由於 關於 對於 根據 通過 為了 之後 之間 許多 然後 現在 裡面 後面
        旁邊 中間 左邊 右邊 兩個 三個 幾個
        """,
    "ja": """
        これ それ あれ どれ この その あの どの ここ そこ あそこ どこ こう そう ああ どう こんな そんな どんな だれ
        なに なぜ いつ いくつ わたし あなた かれ 彼女 私達 自分 です ます でした ました ません である だった ない
        なかった ある いる する した して います している なる なった できる こと もの ところ とき ため よう ほう
        まま うち から まで より だけ しか ほど くらい ぐらい など ながら ので のに けど けれど しかし そして また
        または および だから もし たち さん さま くん ちゃん とても もっと すべて みんな みな ひと ひとつ ふたつ
        みっつ よっつ いつつ ここで そこで 一つ 二つ 三つ 一人 二人 三人 今日 明日 昨日 今年 場合 全部 一緒 について
        による として において
        """,
    "ko": """
        그리고 그러나 하지만 또는 또한 그래서 만약 그 이 저 것 거 수 등 및 나 너 우리 저희 그녀 그들 이것 그것 저것
        여기 거기 저기 무엇 누구 언제 어디 어떻게 왜 어떤 모든 각 다른 같은 있는 없는 있다 없다 이다 아니다 하는 하다
        한다 되는 된다 되어 위 아래 안 밖 앞 뒤 옆 사이 위한 위해 대한 매우 아주 더 가장 다시 이미 아직 함께 하나 둘
        셋 넷 다섯 여섯 일곱 여덟 아홉 열 한 두 세 네 오늘 내일 어제 지금
        """,
}

OF_LANGUAGES: Mapping[str, frozenset[str]] = {
    language: frozenset(map(normal_form, words.split())) - {""} for language, words in _WORDS.items()
}
"""Function words by language, as normal forms."""
ALL_FUNCTION_WORDS: frozenset[str] = FUNCTION_WORDS.union(*OF_LANGUAGES.values())
"""Those of English, too."""
